"""Trials of the reliability of runs: slow, random, and counted.

``pytest -m trials tests/trials`` prints the table of docs/reliability.md.
"""
import os

import pytest

COLUMNS = ('trial', 'tried', 'clear', 'lost', 'executed')
ROWS = []


@pytest.fixture
def count():
    """Function that adds a row to the table."""
    return lambda *row: ROWS.append(row)


@pytest.fixture(scope='session')
def seed():
    """Of everything random; another one by MM_EFFICIENT_SEED."""
    return int(os.environ.get('MM_EFFICIENT_SEED', 0))


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
    if ROWS:
        terminalreporter.write_line('| ' + ' | '.join(COLUMNS) + ' |')
        terminalreporter.write_line('|---' * len(COLUMNS) + '|')
        for row in ROWS:
            terminalreporter.write_line('| ' + ' | '.join(map(str, row)) + ' |')
