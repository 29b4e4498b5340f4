"""Results of a benchmark: rows of a table, written to files and read again."""
import csv
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from mmpretrain.apis import ModelHub

from ..errors import InputError
from ..weights.family import FAMILIES
from .benchmark import Plan
from .timing import Timing

# Names of columns, in files; what they mean is in the help of the tool
COLUMNS = ('model', 'mode', 'dtype', 'batch', 'height', 'width', 'median_ms', 'mean_ms',
           'ms_per_image', 'images_per_s', 'ratio', 'ratio_min', 'ratio_max',
           'peak_mib', 'deviation', 'passes', 'top1_reported')


def make_rows(plan: Plan, timings: Sequence[Timing],
              top1: dict[str, float] | None = None) -> list[dict]:
    """Results as rows of a table.

    Args:
        plan (Plan): What was measured.
        timings (Sequence[Timing]): From :func:`~.benchmark.run`.
        top1 (dict[str, float], optional): Accuracy by model, as reported by others.
            Defaults to None.

    Returns:
        list[dict]: A row per case, with the keys ``COLUMNS``; None for what is not
        known.
    """
    rows = []
    for timing in timings:
        case = timing.case
        peers = [other for other in timings
                 if (other.case.batch, other.case.size) == (case.batch, case.size)]
        baseline = next((other for other in peers
                         if other.case.model == plan.baseline), peers[0])
        deviation = timing.deviation
        if deviation is not None and not math.isfinite(deviation):
            deviation = None  # random weights can overflow, and JSON has no NaN
        values = (
            case.model, case.mode, case.dtype, case.batch, *case.size,
            1e3 * timing.median, 1e3 * timing.mean, 1e3 * timing.median / case.batch,
            timing.throughput, *timing.ratios(baseline), timing.peak_mib, deviation,
            timing.passes, (top1 or {}).get(case.model))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def settings(plan: Plan) -> dict:
    """How and where a plan is measured.

    Args:
        plan (Plan): What is measured.

    Returns:
        dict: What of the plan is not of single cases, hardware, and versions.
    """
    kept = ('device', 'threads', 'jobs', 'iterations', 'warmup', 'rounds',
            'max_seconds', 'backbone', 'baseline')
    return dict({key: getattr(plan, key) for key in kept},
                hardware=hardware(plan.device), torch=torch.__version__,
                python=platform.python_version())


def hardware(device: str) -> str:
    """Name of the processor behind a device of PyTorch.

    Args:
        device (str): 'cpu', 'cuda', ...

    Returns:
        str: As its maker names it.
    """
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines
             if line.startswith('model name')]
    return names[0] if names else platform.machine()


def write_rows(path: str | Path, rows: Sequence[dict], where: dict) -> None:
    """Write results as CSV or JSON, completely or not at all.

    Args:
        path (str | Path): File that ends with .csv or .json; JSON also holds how and
            where it was measured.
        rows (Sequence[dict]): From :func:`make_rows`.
        where (dict): From :func:`settings`.
    """
    path = Path(path)
    draft = path.with_name(f'.{path.name}.tmp')
    try:
        with open(draft, 'w', newline='', encoding='utf-8') as file:
            if path.suffix == '.csv':
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            else:
                json.dump(dict(settings=where, results=rows), file, indent=1)
                file.write('\n')
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_rows(path: str | Path) -> tuple[list[dict], dict]:
    """Read results from JSON.

    Args:
        path (str | Path): File of :func:`write_rows`.

    Returns:
        tuple[list[dict], dict]: Rows and settings.

    Raises:
        InputError: If it is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        rows = [{key: row[key] for key in COLUMNS} for row in content['results']]
        return rows, content['settings']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'{path} holds no results ({type(error).__name__}: {error}); expected a '
            '.json file that benchmark.py --out has written.') from None


def reported_top1(name: str) -> float | None:
    """Accuracy on ImageNet-1K at 224 x 224, as the metadata of a model reports it.

    Args:
        name (str): See :func:`~.zoo.find_model`; of this package, a variant.

    Returns:
        float: In percent; None if nothing is known.
    """
    for family in FAMILIES:
        if name in family.variants:
            figures = family.reported.figures.get(name, {})
            return figures.get('cls', {}).get('Top 1 Accuracy')
    try:
        results = ModelHub.get(name).results or []
    except ValueError:  # not in the index
        return None
    for result in results:
        if result.dataset == 'ImageNet-1k' and 'Top 1 Accuracy' in result.metrics:
            return float(result.metrics['Top 1 Accuracy'])
    return None
