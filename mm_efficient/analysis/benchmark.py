"""Benchmark models side by side: LowFormer's protocol in interleaved rounds.

The published protocol (https://github.com/altair199797/LowFormer): random weights,
inference mode, warm-up, then each pass timed on its own, with device events on CUDA.
The median is reported. Parallel jobs each time their own copy; their medians are
averaged.

In addition, models of the same batch size and shape are timed in interleaved rounds, so
that other load on the machine affects all of them. Their ratio is the median over
rounds of the ratio of their medians in a round, and far more stable than milliseconds.
"""
import contextlib
import csv
import itertools
import json
import math
import multiprocessing
import platform
import queue
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmpretrain.apis import ModelHub
from torch import Tensor

from ..deploy import randomize, relative_error
from ..errors import ExecutionError, InputError, explain
from ..files import whole_file
from ..weights import FAMILIES
from .backends import Forward, build_model, check_backend, peak_mib, prepare
from .models import find_model

COLUMNS = ('model', 'backend', 'dtype', 'batch_size', 'height', 'width', 'median_ms',
           'mean_ms', 'ms_per_image', 'images_per_s', 'ratio', 'ratio_min', 'ratio_max',
           'peak_mib', 'deviation', 'passes', 'top1_reported')
Rounds = list[list[float]]  # seconds by round and pass
_job: dict[str, Any] = {}  # barrier and progress queue of a worker process


class BenchmarkRun(NamedTuple):
    """What is timed: a model in a backend, on images of a shape.

    Args:
        model (str): Name, see :func:`~.models.find_model`.
        backend (str): See :mod:`.backends`.
        dtype (str): 'fp32', 'fp16' or 'bf16'.
        batch_size (int): Images per pass.
        shape (tuple[int, int]): Their height and width.
    """

    model: str
    backend: str
    dtype: str
    batch_size: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time (all combinations of the first five arguments), and how.

    Args:
        models (Sequence[str]): Names, see :func:`~.models.find_model`.
        backends (Sequence[str]): See :mod:`.backends`. Defaults to ('eager', ).
        dtypes (Sequence[str]): Of 'fp32', 'fp16', 'bf16'. Defaults to ('fp32', ).
        batch_sizes (Sequence[int]): Images per pass. Defaults to (1, ).
        shapes (Sequence[tuple[int, int]]): Heights and widths.
            Defaults to ((224, 224), ).
        backbone (bool): Time backbones only. Defaults to False.
        baseline (str, optional): Model that ratios refer to. Defaults to None, the
            first.
        device (str): 'cpu', 'cuda' or 'cuda:N'. Defaults to 'cpu'.
        threads (int): CPU threads per process. Defaults to 1.
        jobs (int): Processes that run the benchmark in parallel. Defaults to 1.
        iterations (int): Timed passes per run. Defaults to 400.
        max_seconds (float): Time limit for the passes of a run. Defaults to 60.
        warmup (int): Warmup passes before timing. Defaults to 10.
        rounds (int): Rounds that the passes are spread over. Defaults to 5.
    """

    models: Sequence[str]
    backends: Sequence[str] = ('eager', )
    dtypes: Sequence[str] = ('fp32', )
    batch_sizes: Sequence[int] = (1, )
    shapes: Sequence[tuple[int, int]] = ((224, 224), )
    backbone: bool = False
    baseline: str | None = None
    device: str = 'cpu'
    threads: int = 1
    jobs: int = 1
    iterations: int = 400
    max_seconds: float = 60.
    warmup: int = 10
    rounds: int = 5

    def groups(self) -> Iterator[list[BenchmarkRun]]:
        """Yield groups of interleaved runs, one per batch size and shape."""
        for shape, batch_size in itertools.product(self.shapes, self.batch_sizes):
            yield [BenchmarkRun(*combination, batch_size, shape) for combination in
                   itertools.product(self.models, self.backends, self.dtypes)]

    @property
    def num_steps(self) -> int:
        """How often :func:`run_benchmark` reports progress."""
        return sum(len(group) * (1 + min(self.rounds, self.iterations))
                   for group in self.groups())

    def check(self) -> None:
        """Check, before any work, that everything can be timed.

        Raises:
            InputError: If a model, backend or device does not exist, a backend does
                not support a dtype, or the baseline is not among the models.
        """
        for backend, dtype in itertools.product(self.backends, self.dtypes):
            check_backend(backend, dtype)
        for name in self.models:
            find_model(name)
        if self.baseline not in (None, *self.models):
            raise InputError(f'the baseline {self.baseline} is not among the models '
                             f'{", ".join(self.models)}.')
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f'device {self.device} cannot be used; expected cpu, cuda '
                             f'or cuda:N ({str(error).splitlines()[0]}).') from None

    def settings(self) -> dict[str, Any]:
        """How and where runs are timed: settings, hardware and versions."""
        listed = ('models', 'backends', 'dtypes', 'batch_sizes', 'shapes')
        kept = {key: value for key, value in asdict(self).items() if key not in listed}
        return dict(kept, hardware=_hardware(self.device), torch=torch.__version__,
                    python=platform.python_version())


class BenchmarkResult(NamedTuple):
    """Result of a run.

    Args:
        run (BenchmarkRun): What was timed.
        jobs (list[Rounds]): Seconds by job, round and pass.
        peak_mib (float, optional): Peak memory, weights included.
        deviation (float): Largest relative error of an output, compared with the
            eager model in float32.
    """

    run: BenchmarkRun
    jobs: list[Rounds]
    peak_mib: float | None
    deviation: float


def run_benchmark(config: BenchmarkConfig,
                  progress: Callable[[str], object]) -> list[BenchmarkResult]:
    """Time all runs.

    Args:
        config (BenchmarkConfig): What to time and how.
        progress (Callable): Called ``config.num_steps`` times with the next step.

    Returns:
        list[BenchmarkResult]: By group of runs, then in the order of ``config``.

    Raises:
        InputError: If a model cannot be timed.
        ExecutionError: If a backend cannot run a model, or a job fails.
    """
    if config.jobs == 1:
        return _time_all(config, progress, lambda: None)
    context = multiprocessing.get_context('spawn')
    barrier, messages = context.Barrier(config.jobs), context.Queue()
    with ProcessPoolExecutor(config.jobs, context, _start_job,
                             (barrier, messages)) as pool:
        futures = [pool.submit(_time_in_job, config, job) for job in range(config.jobs)]
        while not all(future.done() for future in futures):
            with contextlib.suppress(queue.Empty):
                progress(messages.get(timeout=0.2))
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if isinstance(error, BrokenProcessPool):
            raise ExecutionError('a job was killed, probably for lack of memory; try '
                                 'fewer --jobs.') from error
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [same[0]._replace(jobs=[result.jobs[0] for result in same])
            for same in zip(*(future.result() for future in futures))]


def _start_job(barrier: Any, messages: Any) -> None:
    _job.update(barrier=barrier, messages=messages)


def _time_in_job(config: BenchmarkConfig, job: int) -> list[BenchmarkResult]:
    """Time all runs in step with the other jobs; the first one reports progress."""
    progress = _job['messages'].put if job == 0 else lambda message: None
    try:
        with explain(f'job {job} failed'):
            return _time_all(config, progress, _job['barrier'].wait)
    except Exception:
        _job['barrier'].abort()  # or the others would wait forever
        raise


def _time_all(config: BenchmarkConfig, progress: Callable[[str], object],
              wait: Callable[[], object]) -> list[BenchmarkResult]:
    threads, device = torch.get_num_threads(), torch.device(config.device)
    torch.set_num_threads(config.threads)
    if device.index is not None:
        torch.cuda.set_device(device)
    try:
        return [result for group in config.groups()
                for result in _time_group(config, group, progress, wait)]
    finally:
        torch.set_num_threads(threads)


def _time_group(config: BenchmarkConfig, group: Sequence[BenchmarkRun],
                progress: Callable[[str], object], wait: Callable[[], object]
                ) -> list[BenchmarkResult]:
    batch_size, (height, width) = group[0].batch_size, group[0].shape
    images = f'{batch_size} x 3 x {height} x {width}'
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 3, height, width, generator=generator)
    x = x.to(config.device)
    models, results, clocks = {}, [], []
    for run in group:
        progress(f'{run.model}: preparing {run.backend}, {run.dtype}, {images}')
        with explain(f'{run.model} cannot run with backend {run.backend} and '
                     f'{run.dtype} on {images} images on {config.device}'):
            if run.model not in models:
                models[run.model] = _first_pass(run.model, config, x)
            model, reference = models[run.model]
            prepared = prepare(model, run.backend, run.dtype, x)
            for _ in range(config.warmup):
                outputs = prepared.forward()
            deviation = max(relative_error(y.float(), z.float())
                            for y, z in zip(outputs, reference))
            memory = peak_mib(prepared, config.device)
        results.append(BenchmarkResult(run, [], memory, deviation))
        clocks.append(prepared.clock)

    def before(index: int) -> None:
        wait()
        run = group[index]
        progress(f'{run.model}: timing {run.backend}, {run.dtype}, {images}')

    rounds = time_in_rounds(clocks, config.iterations, config.rounds,
                            config.max_seconds, before)
    torch.compiler.reset()  # drop the graphs of this shape
    return [result._replace(jobs=[times]) for result, times in zip(results, rounds)]


def _first_pass(name: str, config: BenchmarkConfig, x: Tensor
                ) -> tuple[Forward, Sequence[Tensor]]:
    """Build a model, and run it eagerly in float32."""
    model = build_model(name, config.device, config.backbone)
    randomize(model.model, model.run, [x[:1]])  # with initial weights some overflow
    with torch.inference_mode():
        return model, model(x)


def time_in_rounds(clocks: Sequence[Callable[[], float]], iterations: int, rounds: int,
                   max_seconds: float, before: Callable[[int], object]) -> list[Rounds]:
    """Time several calls in interleaved rounds.

    Args:
        clocks (Sequence[Callable]): Each runs one warmed-up pass and returns its
            seconds.
        iterations (int): Timed passes of each, over all rounds.
        rounds (int): Number of rounds, at most ``iterations``.
        max_seconds (float): Time limit for the passes of each, over all rounds. There
            is at least one pass per round.
        before (Callable): Called with the index of a clock before its turn.

    Returns:
        list[Rounds]: Seconds by clock, round and pass.
    """
    rounds = min(rounds, iterations)
    times: list[Rounds] = [[] for _ in clocks]
    for i in range(rounds):
        share = iterations * (i + 1) // rounds - iterations * i // rounds
        for index, clock in enumerate(clocks):
            before(index)
            clock()  # caches still hold data of the previous model
            samples = [clock()]
            while len(samples) < share and sum(samples) < max_seconds / rounds:
                samples.append(clock())
            times[index].append(samples)
    return times


# ----------------------------------------------------------------------- results


def make_rows(config: BenchmarkConfig,
              results: Sequence[BenchmarkResult]) -> list[dict]:
    """Turn results into rows of a table.

    Args:
        config (BenchmarkConfig): What was timed.
        results (Sequence[BenchmarkResult]): From :func:`run_benchmark`.

    Returns:
        list[dict]: A row per run with the keys ``COLUMNS``; None for unknown values.
    """
    rows = []
    for result in results:
        group = [other for other in results if other.run[3:] == result.run[3:]]
        baseline = next((other for other in group
                         if other.run.model == config.baseline), group[0])
        rows.append(_row(result, baseline))
    return rows


def _row(result: BenchmarkResult, baseline: BenchmarkResult) -> dict:
    """Average seconds and ratios over jobs; sum images per second."""
    run = result.run
    samples = [[*itertools.chain(*rounds)] for rounds in result.jobs]
    median = statistics.fmean(map(statistics.median, samples))
    mean = statistics.fmean(map(statistics.fmean, samples))
    ratios = [statistics.median(own) / statistics.median(other)
              for mine, theirs in zip(result.jobs, baseline.jobs)
              for own, other in zip(mine, theirs)]
    finite = math.isfinite(result.deviation)  # JSON has no NaN
    values = (run.model, run.backend, run.dtype, run.batch_size, *run.shape,
              1e3 * median, 1e3 * mean, 1e3 * median / run.batch_size,
              len(result.jobs) * run.batch_size / median, statistics.median(ratios),
              min(ratios), max(ratios), result.peak_mib,
              result.deviation if finite else None, len(samples[0]),
              reported_top1(run.model))
    return dict(zip(COLUMNS, values, strict=True))


def reported_top1(name: str) -> float | None:
    """Look up the ImageNet-1K top-1 accuracy that a model's metadata reports.

    Args:
        name (str): A variant, or a model of MMPretrain.

    Returns:
        float | None: In percent; None if unknown.
    """
    for family in FAMILIES:
        if name in family.variants:
            figures = family.reported.figures.get(name, {})
            return figures.get('cls', {}).get('Top 1 Accuracy')
    try:
        results = ModelHub.get(name).results or []
    except ValueError:  # not in the index
        return None
    return next((float(result.metrics['Top 1 Accuracy']) for result in results
                 if result.dataset == 'ImageNet-1k'
                 and 'Top 1 Accuracy' in result.metrics), None)


def write_results(path: str | Path, rows: Sequence[dict],
                  settings: dict[str, Any]) -> None:
    """Write results to a CSV or JSON file.

    Args:
        path (str | Path): Name that ends in .csv or .json. JSON includes the settings.
        rows (Sequence[dict]): From :func:`make_rows`.
        settings (dict): From :meth:`BenchmarkConfig.settings`.
    """
    with whole_file(path) as draft, open(draft, 'w', newline='', encoding='utf-8') as f:
        if draft.suffix == '.csv':
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        else:
            json.dump(dict(settings=settings, results=rows), f, indent=1)
            f.write('\n')


def read_results(path: str | Path) -> tuple[list[dict], dict[str, Any]]:
    """Read results from JSON.

    Args:
        path (str | Path): File of :func:`write_results`.

    Returns:
        tuple[list[dict], dict]: Rows and settings.

    Raises:
        InputError: If it is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        rows = [{key: row[key] for key in COLUMNS} for row in content['results']]
        return rows, content['settings']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'{path} is not a result file ({type(error).__name__}: {error}); expected '
            'JSON written by benchmark.py --out.') from None


def _hardware(device: str) -> str:
    """Name of the GPU or CPU."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
