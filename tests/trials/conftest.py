"""Trials of the reliability of runs: slow, random, and counted.

``pytest -m trials tests/trials`` prints the tables of docs/reliability.md.
"""
import os
from collections import defaultdict
from pathlib import Path

import pytest

COLUMNS = dict(
    test_interruptions=('tried', 'clear', 'lost'),
    test_signals=('tried', 'clear', 'lost'),
    test_malicious_files=('tried', 'clear', 'executed'),
    test_distribution=('tried', 'equal', 'clear', 'lost'),
    test_numerics=('tried', 'finite', 'close'))
ROWS = defaultdict(list)


@pytest.fixture
def count(request):
    """Function that adds a row, of the trial and what it counts, to a table."""
    module = Path(request.module.__file__).stem
    return lambda trial, **counted: ROWS[module].append(
        [trial, *(counted.get(column, '') for column in COLUMNS[module])])


@pytest.fixture(scope='session')
def seed():
    """Of everything random; another one by MM_EFFICIENT_SEED."""
    return int(os.environ.get('MM_EFFICIENT_SEED', 0))


def pytest_terminal_summary(terminalreporter):
    """Print the tables."""
    for module, rows in ROWS.items():
        columns = ('trial', *COLUMNS[module])
        for row in (columns, ['---'] * len(columns), *rows):
            terminalreporter.write_line('| ' + ' | '.join(map(str, row)) + ' |')
        terminalreporter.write_line('')
