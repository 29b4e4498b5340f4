"""torchrun whose processes stop in order: it passes signals on, and waits.

torchrun itself ends its processes 30 s after a signal, and every error with a traceback
of its own. Started by dist_train.sh and dist_test.sh; the options are torchrun's.
"""
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
received: list[int] = []


def pass_on_signals(start: Callable[[PContext], None]) -> Callable[[PContext], None]:
    """Wrap torchrun's start of processes, after which its handlers are replaced."""
    def start_and_watch(context: PContext) -> None:
        def pass_on(signum: int, frame: FrameType | None) -> None:
            received.append(signum)
            for pid in context.pids().values():
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:  # has ended
                    pass

        start(context)
        for signum in SIGNALS:
            signal.signal(signum, pass_on)

    return start_and_watch


def exit_code(error: ChildFailedError) -> int:
    """Exit status of the process that failed first; the process has said why."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f'error: process {rank} was ended by {name}'
              + (', by the system if memory was short' if name == 'SIGKILL' else ''),
              file=sys.stderr)
        return 128 - failure.exitcode
    return failure.exitcode


def main(argv: list[str] | None = None) -> Any:
    """Start the processes, and exit as they do."""
    PContext.start = pass_on_signals(PContext.start)
    code = 0
    try:
        run.main(argv)
    except ChildFailedError as error:
        code = exit_code(error) if not received else 1
    except Exception as error:  # of torchrun itself, such as a port out of range
        reason = ' '.join(str(error).split())
        print(f'error: torchrun: {type(error).__name__}: {reason}', file=sys.stderr)
        code = 1
    if received:
        code = 128 + (signal.SIGINT if received[0] == signal.SIGINT
                      else signal.SIGTERM)
    sys.exit(code)


if __name__ == '__main__':
    main()
