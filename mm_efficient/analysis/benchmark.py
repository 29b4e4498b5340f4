"""A benchmark: cases in groups, in one process or several, and its results."""
import csv
import itertools
import json
import multiprocessing
import os
import platform
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmpretrain.apis import ModelHub

from ..engine.checks import SetupError
from .executors import DTYPES, build, check_mode, deviation, peak_memory, prepare
from .reported import FAMILIES
from .timing import Case, Timing, take_turns
from .zoo import find_model

# Names of columns, in files; what they mean is in the help of the tool
COLUMNS = ('model', 'mode', 'dtype', 'batch', 'height', 'width', 'median_ms', 'mean_ms',
           'ms_per_image', 'images_per_s', 'ratio', 'ratio_min', 'ratio_max',
           'peak_mib', 'deviation', 'passes', 'top1_reported')


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Args:
        cases (tuple[Case]): What to measure. Cases of the same batch and size take
            turns; the first of them, or that of ``baseline``, is what ratios are to.
        device (str): Where. Defaults to 'cpu'.
        threads (int): Threads of a process on a CPU. Defaults to 1.
        jobs (int): Processes that measure at the same time. Defaults to 1.
        iterations (int): Timed passes of a case. Defaults to 400.
        warmup (int): Passes before. Defaults to 10.
        rounds (int): How often cases take turns. Defaults to 5.
        max_seconds (float): Longest time for the passes of a case. Defaults to 60.
        backbone (bool): Whether backbones are measured alone. Defaults to False.
        baseline (str, optional): Model that ratios are to. Defaults to None, the
            first.
    """
    cases: tuple[Case, ...]
    device: str = 'cpu'
    threads: int = 1
    jobs: int = 1
    iterations: int = 400
    warmup: int = 10
    rounds: int = 5
    max_seconds: float = 60.
    backbone: bool = False
    baseline: str | None = None

    def groups(self) -> Iterator[tuple[Case, ...]]:
        """Cases that take turns."""
        for _, group in itertools.groupby(self.cases, lambda c: (c.batch, c.size)):
            yield tuple(group)


def make_cases(models: Sequence[str], modes: Sequence[str], dtypes: Sequence[str],
               batches: Sequence[int], sizes: Sequence[tuple[int, int]]
               ) -> tuple[Case, ...]:
    """All combinations, those that are compared next to each other."""
    return tuple(
        Case(model, mode, dtype, batch, size)
        for size, batch, model, mode, dtype in itertools.product(
            sizes, batches, models, modes, dtypes))


def check_plan(plan: Plan):
    """Find out before anything is measured what cannot be.

    Args:
        plan (Plan): The plan.

    Raises:
        SetupError: If a model, mode or device does not exist.
    """
    for mode in {case.mode for case in plan.cases}:
        check_mode(mode)
    for name in dict.fromkeys(case.model for case in plan.cases):
        find_model(name)
    for case in plan.cases:
        if case.dtype not in DTYPES:
            raise SetupError(f'unknown precision {case.dtype!r}; expected one of '
                             f'{", ".join(DTYPES)}.')
        if case.mode.endswith('onnxruntime') and case.dtype != 'fp32':
            raise SetupError(f'mode {case.mode} runs fp32 only; leave {case.dtype} '
                             'out, or the mode.')
    models = [case.model for case in plan.cases]
    if plan.baseline and plan.baseline not in models:
        raise SetupError(f'the baseline {plan.baseline} is not among the models '
                         f'{", ".join(dict.fromkeys(models))}.')
    try:
        torch.empty(1, device=plan.device)
    except (RuntimeError, AssertionError) as error:
        raise SetupError(f'device {plan.device} cannot be used: '
                         f'{str(error).splitlines()[0]}') from None


def steps(plan: Plan) -> int:
    """Number of times that :func:`run` reports progress."""
    return sum(len(group) * (1 + min(plan.rounds, plan.iterations))
               for group in plan.groups())


def run(plan: Plan, progress: Callable[[str], None]) -> list[Timing]:
    """Measure.

    Args:
        plan (Plan): What and how.
        progress (Callable): Called :func:`steps` times, with what is done next.

    Returns:
        list[Timing]: In the order of the cases.

    Raises:
        SetupError: If a model cannot be run in a mode, or a process fails.
    """
    if plan.jobs == 1:
        return _measure(plan, progress, lambda: None)
    context = multiprocessing.get_context('spawn')
    messages, barrier = context.Queue(), context.Barrier(plan.jobs)
    workers = [context.Process(target=_work, args=(plan, messages, barrier, job),
                               daemon=True) for job in range(plan.jobs)]
    for worker in workers:
        worker.start()
    try:
        return _merge(_collect(workers, messages, progress))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(plan: Plan, messages, barrier, job: int):
    """One of several processes; the first reports the progress."""
    import mm_efficient  # noqa: F401  registers the models
    report = (lambda what: messages.put(('progress', what))) if job == 0 else (
        lambda what: None)
    try:
        messages.put(('result', (job, _measure(plan, report, barrier.wait))))
    except SetupError as error:
        messages.put(('error', str(error)))
    except Exception as error:  # to be told by the parent, whatever it is
        messages.put(('error', f'job {job}: {type(error).__name__}: {error}'))


def _collect(workers, messages, progress) -> list[list[Timing]]:
    results = {}
    while len(results) < len(workers):
        try:
            kind, content = messages.get(timeout=1)
        except queue.Empty:
            dead = [w.exitcode for w in workers if w.exitcode not in (None, 0)]
            if dead:
                raise SetupError(f'a job ended with exit code {dead[0]}; with -9 it '
                                 'was out of memory.') from None
            continue
        if kind == 'error':
            raise SetupError(content)
        if kind == 'progress':
            progress(content)
        else:
            job, timings = content
            results[job] = timings
    return [results[job] for job in sorted(results)]


def _merge(results: list[list[Timing]]) -> list[Timing]:
    """Timings of one job each, as timings of all jobs."""
    return [replace(same[0], jobs=[timing.jobs[0] for timing in same])
            for same in zip(*results)]


def _measure(plan: Plan, progress: Callable[[str], None],
             wait: Callable[[], object]) -> list[Timing]:
    """Measure everything in this process.

    Args:
        plan (Plan): What and how.
        progress (Callable): Told what is done next.
        wait (Callable): Waits for the other jobs.

    Returns:
        list[Timing]: With one job.
    """
    torch.set_num_threads(plan.threads)
    if plan.device.startswith('cuda'):
        torch.cuda.set_device(plan.device)
    timings = []
    for group in plan.groups():
        timings += _measure_group(plan, group, progress, wait)
    return timings


def _measure_group(plan: Plan, group: Sequence[Case], progress: Callable[[str], None],
                   wait: Callable[[], object]) -> list[Timing]:
    timings, executables, models = [], [], {}
    size = f'{group[0].batch} x {group[0].size[0]} x {group[0].size[1]}'
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(group[0].batch, 3, *group[0].size, generator=generator)
    x = x.to(plan.device)
    for case in group:
        progress(f'{case.model}: preparing {case.mode}, {case.dtype}, {size}')
        if case.model not in models:
            model = build(case.model, plan.device, plan.backbone)
            with torch.inference_mode():
                models[case.model] = model, model(x)
        model, reference = models[case.model]
        executable = prepare(model, case, x)
        for _ in range(max(1, plan.warmup)):
            outputs = executable.run()
        timings.append(Timing(case, peak_mib=peak_memory(executable, plan.device),
                              deviation=deviation(outputs, reference)))
        executables.append(executable)
    turn = itertools.cycle(group)

    def before():
        wait()
        case = next(turn)
        progress(f'{case.model}: timing {case.mode}, {case.dtype}, {size}')

    found = take_turns([each.run for each in executables],
                       [each.clock for each in executables], plan.iterations,
                       plan.rounds, plan.max_seconds, before)
    for timing, rounds in zip(timings, found):
        timing.jobs = [rounds]
    torch.compiler.reset()  # graphs of this size
    return timings


# -------------------------------------------------------------------- results


def make_rows(plan: Plan, timings: Sequence[Timing],
              top1: dict[str, float] | None = None) -> list[dict]:
    """Results as rows of a table.

    Args:
        plan (Plan): What was measured.
        timings (Sequence[Timing]): From :func:`run`.
        top1 (dict[str, float], optional): Accuracy by model, as reported by others.
            Defaults to None.

    Returns:
        list[dict]: A row per case, with the keys ``COLUMNS``.
    """
    rows = []
    for timing in timings:
        case = timing.case
        peers = [other for other in timings
                 if (other.case.batch, other.case.size) == (case.batch, case.size)]
        baseline = next((other for other in peers
                         if other.case.model == plan.baseline), peers[0])
        values = (
            case.model, case.mode, case.dtype, case.batch, *case.size,
            1e3 * timing.median, 1e3 * timing.mean, 1e3 * timing.median / case.batch,
            timing.throughput, *timing.ratios(baseline), timing.peak_mib,
            timing.deviation, timing.passes, (top1 or {}).get(case.model))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_rows(path: str | Path, rows: Sequence[dict], plan: Plan):
    """Write results as CSV or JSON, completely or not at all.

    Args:
        path (str | Path): File that ends with .csv or .json; JSON also holds how and
            where it was measured.
        rows (Sequence[dict]): From :func:`make_rows`.
        plan (Plan): What was measured.
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
                json.dump(dict(settings=settings(plan), results=rows), file, indent=1)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def settings(plan: Plan) -> dict:
    """How and where a plan is measured."""
    kept = ('device', 'threads', 'jobs', 'iterations', 'warmup', 'rounds',
            'max_seconds', 'backbone', 'baseline')
    return dict({key: getattr(plan, key) for key in kept}, hardware=hardware(plan),
                torch=torch.__version__, python=platform.python_version())


def hardware(plan: Plan) -> str:
    """Name of the processor that is measured on."""
    if plan.device.startswith('cuda'):
        return torch.cuda.get_device_name(plan.device)
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines
             if line.startswith('model name')]
    return names[0] if names else platform.machine()


def reported_top1(name: str) -> float | None:
    """Accuracy on ImageNet-1K at 224 x 224, as the metadata of a model reports it.

    Args:
        name (str): See :func:`~.zoo.find_model`; of this package, a variant.

    Returns:
        float: In percent; None if nothing is known.
    """
    for family in FAMILIES.values():
        if name in family.variants:
            return family.variants[name].get('cls', {}).get('Top 1 Accuracy')
    try:
        results = ModelHub.get(name).results or []
    except ValueError:  # not in the index
        return None
    for result in results:
        if result.dataset == 'ImageNet-1k' and 'Top 1 Accuracy' in result.metrics:
            return float(result.metrics['Top 1 Accuracy'])
    return None


def draw_rows(rows: Sequence[dict], plan: Plan) -> Figure:
    """Figure of reported accuracy against measured time of an image.

    Args:
        rows (Sequence[dict]): From :func:`make_rows`.
        plan (Plan): What was measured.

    Returns:
        Figure: A panel per batch and size, a colour per mode and precision; of the
        models whose accuracy is known.
    """
    rows = [row for row in rows if row['top1_reported'] is not None]
    panels = list(dict.fromkeys((r['batch'], r['height'], r['width']) for r in rows))
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout='constrained')
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        shown = [r for r in rows if (r['batch'], r['height'], r['width']) == panel]
        for kind in dict.fromkeys((r['mode'], r['dtype']) for r in shown):
            points = [r for r in shown if (r['mode'], r['dtype']) == kind]
            axes.scatter([r['ms_per_image'] for r in points],
                         [r['top1_reported'] for r in points], label=' '.join(kind))
        for model in dict.fromkeys(r['model'] for r in shown):
            row = min((r for r in shown if r['model'] == model),
                      key=lambda r: r['ms_per_image'])
            axes.annotate(model, (row['ms_per_image'], row['top1_reported']),
                          xytext=(0, 7), textcoords='offset points', fontsize=8)
        axes.set_title('batch {}, {} x {}'.format(*panel))
        axes.set_xlabel(f'measured ms per image, {hardware(plan)}', fontsize=9)
        axes.set_ylabel('top-1 accuracy (%), as reported by the authors', fontsize=9)
        axes.margins(x=0.2, y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
