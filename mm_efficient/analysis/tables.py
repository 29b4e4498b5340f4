"""Results of the benchmark as a table in Markdown."""
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

TITLES = dict(onnxruntime='ONNX Runtime', compile='compiled')


def read_published(path: str | Path) -> dict[str, dict[str, float]]:
    """Read times of published implementations relative to ResNet-50.

    Args:
        path (str | Path): JSON file with ``published``: model -> setting, such as
            forward_b1_224 -> median, minimum and maximum of the ratio.

    Returns:
        dict[str, dict[str, float]]: The medians.

    Raises:
        InputError: If it is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))['published']
        return {model: {setting: float(values[0]) for setting, values in each.items()}
                for model, each in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'{path} is not a file of published ratios '
                         f'({type(error).__name__}: {error}); expected one like '
                         'docs/benchmark/published.json.') from None


def ratio_table(rows: Iterable[Mapping[str, Any]],
                published: Mapping[str, Mapping[str, float]]) -> str:
    """Make a table of the ratios, with a row per model and a column per way to run it.

    Args:
        rows (Iterable[Mapping]): From :func:`~.benchmark.run_benchmark`.
        published (Mapping): From :func:`read_published`. They have a column beside
            the settings they are for.

    Returns:
        str: Markdown. The first columns after a model's name are for the step that was
        timed first. Columns of peak memory follow eager training.
    """
    columns: dict[tuple, None] = {}
    cells: dict[tuple, str] = {}
    models: dict[str, None] = {}
    for row in rows:
        models[row['model']] = None
        step, setting = _setting(row)
        way = '+'.join(TITLES.get(part, part) for part in row['backend'].split('+'))
        if row['dtype'] != 'fp32':
            way += f' {row["dtype"]}'
        columns[step, way] = None
        cells[row['model'], step, way] = f'{row["ratio"]:.3f}'
        known = published.get(row['model'], {}).get(setting)
        if known is not None:
            columns[step, 'published'] = None
            cells[row['model'], step, 'published'] = f'{known:.3f}'
        if way == 'eager' and row['step'] == 'train' and row['peak_mib'] is not None:
            columns[step, 'MiB'] = None
            cells[row['model'], step, 'MiB'] = f'{row["peak_mib"]:.0f}'
    steps = [*dict.fromkeys(step for step, _ in columns)]
    order = [column for step in steps for column in columns if column[0] == step]
    lines = ['| model | ' + ' | '.join(f'{step}: {way}' for step, way in order) + ' |',
             '|---|' + '---|' * len(order)]
    lines += [f'| `{model}` | ' + ' | '.join(
        cells.get((model, *column), '') for column in order) + ' |' for model in models]
    return '\n'.join(lines) + '\n'


def _setting(row: Mapping[str, Any]) -> tuple[str, str]:
    """Title of the columns of a row, and the key of published figures for it."""
    height, width, batch = row['height'], row['width'], row['batch_size']
    size = f'{height}' if height == width else f'{height}x{width}'
    step = 'forward_backward' if row['step'] == 'train' else 'forward'
    return f'{row["step"]}, {batch} x {size}', f'{step}_b{batch}_{size}'
