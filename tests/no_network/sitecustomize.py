"""Imported by Python when it starts, from ``PYTHONPATH``."""
import no_network  # noqa: F401
