"""Training curves from the scalars that MMEngine logs."""
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from ..errors import InputError

TIMES = ('time', 'data_time', 'memory')
PANEL_INCHES = (4.8, 3.2)
MAX_COLUMNS = 3


@dataclass
class Run:
    """Curves of one training.

    Args:
        name (str): What to call it.
        curves (dict[str, dict[int, float]]): Key to step to value.
        axes (dict[str, str]): Key to what its steps are, 'iteration' or 'epoch'.
        metrics (set[str]): Keys that come from validations.
    """
    name: str
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)

    def smoothed(self, key: str, weight: float) -> tuple[list[int], list[float]]:
        """A curve as an exponential moving average, without bias at its start.

        Args:
            key (str): Which one.
            weight (float): Of the average so far, in [0, 1); 0 smooths nothing.

        Returns:
            tuple[list[int], list[float]]: Steps and values.
        """
        steps = sorted(self.curves[key])
        average, total, values = 0., 0., []
        for step in steps:
            average = weight * average + (1 - weight) * self.curves[key][step]
            total = weight * total + (1 - weight)
            values.append(average / total)
        return steps, values


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Read the curves of a training.

    Of a work dir, the logs of all its starts are joined: what a resumed training
    repeats replaces what was logged before.

    Args:
        path (str | Path): A work dir, one of its dated folders, or ``scalars.json``.
        name (str, optional): What to call it. Defaults to None, the folder's name.

    Returns:
        Run: Its curves.

    Raises:
        InputError: If there are none.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(
        [*path.glob('*/vis_data/scalars.json'), *path.glob('vis_data/scalars.json')])
    if not files:
        raise InputError(
            f'{path} has no log of scalars; expected a work dir with '
            '<date>/vis_data/scalars.json, or that file. MMEngine writes it with '
            'LocalVisBackend, from the first logging interval on.')
    run = Run(name or path.resolve().name)
    for file in files:
        _add(run, _records(file))
    if not run.curves:
        raise InputError(f'{path} holds no scalars yet.')
    return run


def _records(file: Path) -> list[dict]:
    records = []
    lines = file.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and 'step' in record:
            records.append(record)
        elif number < len(lines):  # the last line may still be being written
            raise InputError(f'{file}, line {number}, is no JSON object with a step; '
                             'expected scalars.json as MMEngine writes it.')
    return records


def _add(run: Run, records: list[dict]) -> None:
    """Continue the curves of a run with what was logged after another start."""
    by_epoch = any('epoch' in record for record in records)
    new, metrics = {}, set()
    for record in records:
        training = 'iter' in record
        for key, value in record.items():
            if key in ('step', 'iter', 'epoch') or isinstance(value, str):
                continue
            if not training:
                key = f'val/{key}' if key in TIMES else key
                metrics.add(key)
            new.setdefault(key, {})[record['step']] = float(value)
    for key, curve in new.items():
        # What came after the point this start continues from no longer counts
        kept = {step: value for step, value in run.curves.get(key, {}).items()
                if step < min(curve)}
        run.curves[key] = {**kept, **curve}
        run.axes[key] = 'epoch' if by_epoch and key in metrics else 'iteration'
    run.metrics |= metrics


def choose_keys(runs: Sequence[Run], keys: Sequence[str] | None = None) -> list[str]:
    """Keys to draw.

    Args:
        runs (Sequence[Run]): The trainings.
        keys (Sequence[str], optional): Those wanted; an ending in ``*`` stands for
            every key that begins so. Defaults to None: the total loss, the learning
            rate and the main metrics.

    Returns:
        list[str]: Every one is in some run.

    Raises:
        InputError: If a key is in no run.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.curves))
    if not keys:
        metrics = set().union(*(run.metrics for run in runs))
        return [key for key in known
                if key in ('loss', 'lr') or key in metrics and _is_main(key, metrics)]
    chosen = []
    for key in keys:
        found = [k for k in known if k == key
                 or key.endswith('*') and k.startswith(key[:-1])]
        if not found:
            raise InputError(f'no run has {key!r}; there are: {", ".join(known)}.')
        chosen += [k for k in found if k not in chosen]
    return chosen


def _is_main(key: str, metrics: set[str]) -> bool:
    """Whether a metric is not a part of another one, as bbox_mAP_50 of bbox_mAP."""
    return not key.startswith('val/') and not any(
        key.startswith(f'{other}_') for other in metrics)


def draw_curves(runs: Sequence[Run], keys: Sequence[str], smooth: float = 0.) -> Figure:
    """Figure with a panel per key and a line per training.

    Args:
        runs (Sequence[Run]): The trainings.
        keys (Sequence[str]): From :func:`choose_keys`.
        smooth (float): Weight of the moving average of curves over iterations, the
            unsmoothed ones stay in the background. Defaults to 0, none.

    Returns:
        Figure: Not saved yet.
    """
    columns = min(MAX_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]),
                    layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, key in zip(panels.flat, keys):
        for number, run in enumerate(runs):
            if key not in run.curves:
                continue
            weight = smooth if run.axes[key] == 'iteration' else 0.
            color, marker = f'C{number % 10}', 'o' if len(run.curves[key]) < 30 else ''
            if weight:
                panel.plot(*run.smoothed(key, 0.), color=color, alpha=0.25, lw=1)
            panel.plot(*run.smoothed(key, weight), color=color, marker=marker,
                       markersize=4, label=run.name)
            panel.set_xlabel(run.axes[key])
        panel.set_title(key)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(keys):]:
        panel.set_visible(False)
    if len(runs) > 1:
        panels[0, 0].legend(fontsize=8)
    else:
        figure.suptitle(runs[0].name)
    return figure
