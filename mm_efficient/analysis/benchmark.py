"""A benchmark: cases in groups, in one process or several."""
import itertools
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..deploy.samples import randomize
from ..errors import InputError, explain
from .executors import (
    DTYPES,
    Forward,
    build,
    check_mode,
    deviation,
    peak_memory,
    prepare,
)
from .models import find_model
from .timing import Case, Timing, take_turns


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
    """All combinations, those that are compared next to each other.

    Args:
        models (Sequence[str]): Names, see :func:`~.zoo.find_model`.
        modes (Sequence[str]): See :mod:`.executors`.
        dtypes (Sequence[str]): Of 'fp32', 'fp16', 'bf16'.
        batches (Sequence[int]): Images at a time.
        sizes (Sequence[tuple[int, int]]): Heights and widths in pixels.

    Returns:
        tuple[Case, ...]: What to measure.
    """
    return tuple(
        Case(model, mode, dtype, batch, size)
        for size, batch, model, mode, dtype in itertools.product(
            sizes, batches, models, modes, dtypes))


def check_plan(plan: Plan) -> None:
    """Find out before anything is measured what cannot be.

    Args:
        plan (Plan): The plan.

    Raises:
        InputError: If a model, mode, precision or device does not exist, a mode has
            not that precision, or the baseline is none of the models.
    """
    for mode in {case.mode for case in plan.cases}:
        check_mode(mode)
    for name in dict.fromkeys(case.model for case in plan.cases):
        find_model(name)
    for case in plan.cases:
        if case.dtype not in DTYPES:
            raise InputError(f'unknown precision {case.dtype!r}; expected one of '
                             f'{", ".join(DTYPES)}.')
        if case.mode.endswith('onnxruntime') and case.dtype != 'fp32':
            raise InputError(f'mode {case.mode} runs fp32 only; leave {case.dtype} '
                             'out, or the mode.')
    models = [case.model for case in plan.cases]
    if plan.baseline and plan.baseline not in models:
        raise InputError(f'the baseline {plan.baseline} is not among the models '
                         f'{", ".join(dict.fromkeys(models))}.')
    try:
        torch.empty(1, device=plan.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'device {plan.device} cannot be used: '
                         f'{str(error).splitlines()[0]}') from None


def steps(plan: Plan) -> int:
    """Number of times that :func:`run` reports progress.

    Args:
        plan (Plan): What is measured.

    Returns:
        int: The number.
    """
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
        InputError: If a model cannot be run in a mode, or a process fails.
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
    except InputError as error:
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
                raise InputError(f'a job ended with exit code {dead[0]}; with -9 it '
                                 'was out of memory.') from None
            continue
        if kind == 'error':
            raise InputError(content)
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


def _first_pass(case: Case, plan: Plan, x: Tensor) -> tuple[Forward, list[Tensor]]:
    """A model, and what it gives in PyTorch."""
    with explain(f'{case.model} cannot be run on images of '
                    f'{" x ".join(map(str, x.shape))} on {plan.device}'):
        model = build(case.model, plan.device, plan.backbone)
        randomize(model.model, model.run, [x[:1]])  # as initialised some overflow
        with torch.inference_mode():
            return model, model(x)


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
            models[case.model] = _first_pass(case, plan, x)
        model, reference = models[case.model]
        executable = prepare(model, case, x)
        for _ in range(max(1, plan.warmup)):
            outputs = executable.run()
        timings.append(Timing(case, peak_mib=peak_memory(executable, plan.device),
                              deviation=deviation(outputs, reference)))
        executables.append(executable)
    turn = itertools.cycle(group)

    def before() -> None:
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
