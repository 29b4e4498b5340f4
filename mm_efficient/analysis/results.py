"""Files with results of the benchmark."""
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, short
from ..files import whole_file
from .benchmark import COLUMNS, BenchmarkRun
from .tables import ratio_table, time_table

TEXTS = ('model', 'backend', 'dtype', 'step')
UNKNOWN = ('peak_mib', 'bandwidth', 'deviation', 'top1_reported')  # may be None
SHOWN = ('hardware', 'device', 'threads', 'torch')  # settings
SUFFIXES = ('.csv', '.json', '.jsonl', '.md')


def write_results(path: str | Path, rows: Sequence[dict], settings: dict[str, Any],
                  published: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Write results to a file.

    Args:
        path (str | Path): Name that ends in .csv, .json, .jsonl or .md. JSON includes
            the settings. JSON Lines, with a row each, are appended to the file if it
            exists. For Markdown see :func:`~.tables.ratio_table`, and for runs on
            CUDA, unless there are published ratios, :func:`~.tables.time_table`.
        rows (Sequence[dict]): From :func:`~.benchmark.run_benchmark`.
        settings (dict): From :meth:`~.benchmark.BenchmarkConfig.settings`.
        published (Mapping, optional): From :func:`~.tables.read_published`, for
            Markdown. Defaults to None.
    """
    suffix, before = Path(path).suffix.lower(), ''
    if suffix == '.jsonl' and Path(path).exists():
        before = Path(path).read_text(encoding='utf-8')
        if before and not before.endswith('\n'):  # some editors leave it out
            before += '\n'
    with whole_file(path) as draft, open(draft, 'w', newline='', encoding='utf-8') as f:
        if suffix == '.csv':
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        elif suffix == '.md':
            cuda = str(settings['device']).startswith('cuda')
            f.write(time_table(rows) if cuda and not published
                    else ratio_table(rows, published or {}))
        elif suffix == '.jsonl':
            f.write(before)
            for row in rows:
                f.write(json.dumps(dict(row, settings=settings)) + '\n')
        else:
            json.dump(dict(settings=settings, results=rows), f, indent=1)
            f.write('\n')


def latest(rows: Iterable[dict]) -> list[dict]:
    """Of rows for the same run, keep the last one.

    Args:
        rows (Iterable[dict]): From :func:`~.benchmark.run_benchmark`.

    Returns:
        list[dict]: In the order in which their runs first appear.
    """
    return [*{tuple(row[key] for key in BenchmarkRun._fields): row
              for row in rows}.values()]


def read_results(path: str | Path) -> tuple[list[dict], dict[str, Any]]:
    """Read results from JSON or JSON Lines.

    Args:
        path (str | Path): File of :func:`write_results`.

    Returns:
        tuple[list[dict], dict]: Rows, of those for the same run in a file of JSON Lines
        the last one; and settings, of the last run.

    Raises:
        InputError: If it is not such a file, or has results of several machines.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
        if Path(path).suffix.lower() == '.jsonl':
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            all_settings = [row['settings'] for row in rows]
        else:
            content = json.loads(text)
            rows, all_settings = content['results'], [content['settings']]
        if not rows or not all(settings[key] for settings in all_settings
                               for key in SHOWN):
            raise ValueError('no results, or an empty setting')
        # Files of earlier versions have no bandwidth
        rows = [{key: (dict(bandwidth=None) | row)[key] for key in COLUMNS}
                for row in rows]
        for row in rows:
            _check_types(row)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f'{path} is not a result file ({type(error).__name__}: {error}); expected '
            'JSON written by benchmark.py --out.') from None
    for settings in all_settings:
        _check_same(path, settings, all_settings[-1])
    return latest(rows), all_settings[-1]


def _check_same(path: str | Path, settings: dict, others: dict) -> None:
    """Times of different machines do not belong in one table."""
    for key in ('hardware', 'threads', 'torch'):
        if settings[key] != others[key]:
            raise InputError(f'{path} has results with {key} {settings[key]}, others '
                             f'have {others[key]}, which are not comparable: keep them '
                             'in files of their own.')


def _check_types(row: dict) -> None:
    for key, value in row.items():
        kinds = str if key in TEXTS else (int, float)
        if not isinstance(value, kinds) and not (value is None and key in UNKNOWN):
            raise TypeError(f'{key} is {short(value)}')


def check_addition(path: str | Path, settings: dict[str, Any]) -> None:
    """Check, before any work, that rows can be added to a file of JSON Lines.

    Args:
        path (str | Path): Any output file.
        settings (dict): Of the rows, from :meth:`~.benchmark.BenchmarkConfig.settings`.

    Raises:
        InputError: If it has something else in it, or results of another machine.
    """
    path = Path(path)
    if path.suffix.lower() == '.jsonl' and path.exists() and path.stat().st_size:
        _check_same(path, read_results(path)[1], settings)
