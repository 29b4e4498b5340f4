"""Results of the benchmark as a table in Markdown."""
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

TITLES = dict(onnxruntime='ONNX Runtime', compile='compiled', cudagraph='CUDA graph')
Cells = dict[tuple[str, str, str], str]  # by model, step and way to run it


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
    cells: Cells = {}
    for row in rows:
        step, setting = _setting(row)
        model, way = row['model'], _way(row)
        cells[model, step, way] = f'{row["ratio"]:.3f}'
        known = published.get(model, {}).get(setting)
        if known is not None:
            cells[model, step, 'published'] = f'{known:.3f}'
        if way == 'eager' and row['step'] == 'train' and row['peak_mib'] is not None:
            cells[model, step, 'MiB'] = f'{row["peak_mib"]:.0f}'
    return _markdown(cells)


def time_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Make a table of times, with a row per model and a column per way to run it.

    Args:
        rows (Iterable[Mapping]): From :func:`~.benchmark.run_benchmark`.

    Returns:
        str: Markdown. A cell has the median milliseconds; for more than one image
        also images per second; and the share of the memory bandwidth if it is known.
    """
    cells: Cells = {}
    for row in rows:
        parts = [f'{row["median_ms"]:.3g} ms']
        if row['batch_size'] > 1:
            parts.append(f'{row["images_per_s"]:.0f}/s')
        if row['bandwidth'] is not None:
            parts.append(f'{row["bandwidth"]:.0%}')
        cells[row['model'], _setting(row)[0], _way(row)] = ', '.join(parts)
    return _markdown(cells)


def _markdown(cells: Cells) -> str:
    """A row per model; columns by step, whose first one names it, in order."""
    models = [*dict.fromkeys(model for model, *_ in cells)]
    columns = [*dict.fromkeys((step, way) for _, step, way in cells)]
    steps = [*dict.fromkeys(step for step, _ in columns)]
    columns.sort(key=lambda column: steps.index(column[0]))
    first = {step: f'{step}: ' for step in steps}
    titles = ' | '.join(first.pop(step, '') + way for step, way in columns)
    lines = [f'| model | {titles} |', '|---|' + '---|' * len(columns)]
    lines += [f'| `{model}` | ' + ' | '.join(
        cells.get((model, *column), '') for column in columns) + ' |'
        for model in models]
    return '\n'.join(lines) + '\n'


def _way(row: Mapping[str, Any]) -> str:
    """Title of a backend and dtype."""
    way = '+'.join(TITLES.get(part, part) for part in row['backend'].split('+'))
    return way if row['dtype'] == 'fp32' else f'{way} {row["dtype"]}'


def _setting(row: Mapping[str, Any]) -> tuple[str, str]:
    """Title of the columns of a row, and the key of published figures for it."""
    height, width, batch = row['height'], row['width'], row['batch_size']
    size = f'{height}' if height == width else f'{height}x{width}'
    step = 'forward_backward' if row['step'] == 'train' else 'forward'
    return f'{row["step"]}, {batch} x {size}', f'{step}_b{batch}_{size}'
