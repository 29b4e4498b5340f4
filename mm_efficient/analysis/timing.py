"""Timing by LowFormer's published protocol, several models side by side.

What the protocol fixes (https://github.com/altair199797/LowFormer): random weights,
inference mode, warm-up passes, then every pass timed on its own, on a GPU between two
events of the device; the median over the passes counts, divided by the batch for the
time of an image; parallel jobs are processes that each time their own copy, and the
means over them of their medians and means are reported.

What is added here: models take turns, round after round, so that what else the machine
does meets all of them. The ratio of two models is the median over rounds of the ratio
of their medians in a round, which is far steadier than the times.
"""
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """What is timed.

    Args:
        model (str): Name of a model, see :func:`~.zoo.find_model`.
        mode (str): How it is run, see :mod:`~.executors`.
        dtype (str): 'fp32', 'fp16' or 'bf16'.
        batch (int): Images at a time.
        size (tuple[int, int]): Their height and width.
    """
    model: str
    mode: str = 'eager'
    dtype: str = 'fp32'
    batch: int = 1
    size: tuple[int, int] = (224, 224)


@dataclass
class Timing:
    """Times of a case.

    Args:
        case (Case): What was timed.
        jobs (list[list[list[float]]]): Seconds of single passes, by job and round.
        peak_mib (float, optional): Most memory that tensors took, weights included.
        deviation (float, optional): Largest difference of an output to that of the
            eager model in float32, over the largest magnitude of the latter.
    """
    case: Case
    jobs: list[list[list[float]]] = field(default_factory=list)
    peak_mib: float | None = None
    deviation: float | None = None

    @property
    def passes(self) -> int:
        """Number of timed passes of a job."""
        return sum(len(samples) for samples in self.jobs[0])

    @property
    def median(self) -> float:
        """Seconds of a pass: mean over jobs of their medians."""
        return statistics.fmean(
            statistics.median(_flat(rounds)) for rounds in self.jobs)

    @property
    def mean(self) -> float:
        """Seconds of a pass: mean over jobs of their means."""
        return statistics.fmean(statistics.fmean(_flat(rounds)) for rounds in self.jobs)

    @property
    def throughput(self) -> float:
        """Images per second, of all jobs together."""
        return len(self.jobs) * self.case.batch / self.median

    def ratios(self, baseline: 'Timing') -> tuple[float, float, float]:
        """Time over that of another case of the same run.

        Args:
            baseline (Timing): The other case.

        Returns:
            tuple[float, float, float]: Median, smallest and largest over all rounds
            of all jobs.
        """
        found = [statistics.median(own) / statistics.median(other)
                 for mine, theirs in zip(self.jobs, baseline.jobs)
                 for own, other in zip(mine, theirs)]
        return statistics.median(found), min(found), max(found)


def _flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [seconds for samples in rounds for seconds in samples]


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_clock(run: Callable[[], object]) -> float:
    """Seconds between two events of the current device around a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def take_turns(runs: Sequence[Callable[[], object]],
               clocks: Sequence[Callable[[Callable], float]],
               iterations: int, rounds: int, max_seconds: float,
               before: Callable[[], object]) -> list[list[list[float]]]:
    """Time several calls in turns.

    Args:
        runs (Sequence[Callable]): What is timed, warmed up.
        clocks (Sequence[Callable]): What times each.
        iterations (int): Timed passes of each, all rounds together.
        rounds (int): How often they take turns.
        max_seconds (float): End the passes of each early after this time, all rounds
            together; there is at least one in every round.
        before (Callable): Called before each turn.

    Returns:
        list[list[list[float]]]: Seconds by call, round and pass.
    """
    rounds = min(rounds, iterations)
    shares = [iterations * (i + 1) // rounds - iterations * i // rounds
              for i in range(rounds)]
    found = [[] for _ in runs]
    for share in shares:
        for run, clock, times in zip(runs, clocks, found):
            before()
            clock(run)  # caches still hold what another one left
            samples = [clock(run)]
            while len(samples) < share and sum(samples) < max_seconds / rounds:
                samples.append(clock(run))
            times.append(samples)
    return found
