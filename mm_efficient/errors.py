"""Errors that are reported to the user.

Library code raises :class:`InputError` or :class:`ExecutionError`, a ``ValueError`` and
a ``RuntimeError``. Command-line tools run inside :func:`error_line`, which prints such
an error as one ``error:`` line instead of a traceback.
"""
import contextlib
import difflib
import signal
import sys
import time
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """A user's input is missing or wrong.

    The message says what was expected, what was given and what to do next.
    """


class ExecutionError(RuntimeError):
    """A requested operation failed; the message says why."""


class ReportedError(ExecutionError):
    """Another process of the run has failed and reports the error."""


class StoppedError(ExecutionError):
    """A signal has ended a run in order; the message says what was saved.

    Args:
        message (str): The message.
        signum (int): The signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + (signal.SIGINT if signum == signal.SIGINT
                                else signal.SIGTERM)


def one_line(text: object) -> str:
    """Write an error's message, or any text, in one line."""
    return ' '.join(str(text).split())


def short(value: object) -> str:
    """Write a value as in Python, cut to the length of a line.

    Args:
        value (object): Such as a setting of a config.

    Returns:
        str: At most 60 characters.
    """
    text = one_line(repr(value))
    return text if len(text) < 60 else f'{text[:56]} ...'


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Suggest the nearest of the known names.

    Args:
        name (str): What was given.
        known (Iterable[object]): What exists.

    Returns:
        str: To follow the name in a message: ' (did you mean ...?)', or ''.
    """
    near = difflib.get_close_matches(name, map(str, known), 1, 0.6)
    return f' (did you mean {near[0]!r}?)' if near else ''


REPORT_SECONDS = 5  # time to report; launchers stop all processes when one exits


@contextlib.contextmanager
def explain(action: str, hint: str = '') -> Iterator[None]:
    """Context that turns any library's exception into an :class:`ExecutionError`.

    Args:
        action (str): What cannot be done, such as 'the model cannot be built'. The
            type and the first line of the exception follow.
        hint (str): The next step, as a full sentence. Defaults to ''.

    Raises:
        ExecutionError: In place of any exception that is not an :class:`InputError` or
            :class:`ExecutionError` already.
    """
    try:
        yield
    except (InputError, ExecutionError):
        raise
    except Exception as error:
        reason = str(error).strip().partition('\n')[0]
        raise ExecutionError(f'{action}: {type(error).__name__}: {reason}'
                             f'{hint and f". {hint}"}') from error


@contextlib.contextmanager
def error_line() -> Iterator[None]:
    """Context for a tool's ``main``: exit with one ``error:`` line on user errors.

    Raises:
        SystemExit: In place of :class:`InputError`, :class:`ExecutionError`,
            ``OSError`` and ``ImportError``. Prints nothing for :class:`ReportedError`.
            After Ctrl-C or another signal, the line has no ``error:`` and the exit
            status is 130 or 143.
    """
    try:
        yield
    except StoppedError as stop:
        if str(stop):
            print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print('Stopped by Ctrl-C.', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except ReportedError:
        time.sleep(REPORT_SECONDS)
        sys.exit(1)
    except (InputError, ExecutionError, OSError, ImportError) as error:
        text = str(error)
        if 'Original Traceback' in text:  # PyTorch's, from a process that loads data
            text = text.strip().splitlines()[-1].partition(': ')[2]
        sys.exit(f'error: {text}')
