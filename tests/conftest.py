"""Imported before any test module."""
import mm_efficient  # noqa: F401  its repairs precede every import of mmcv.ops
