"""The command line: each command calls one library function and shows what it returns.

Modules that take long to import are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys

import typer

from tinlab import terminal
from tinlab.cli.common import UsageError, app, usage_sentence
from tinlab.errors import TinlabError
from tinlab.files import refused
from tinlab.tuning import tune_process

# isort: off
# The order of these imports is the order of the commands in the help.
from tinlab.cli import training  # noqa: F401
from tinlab.cli import many  # noqa: F401
from tinlab.cli import papers  # noqa: F401
from tinlab.cli import checks  # noqa: F401
from tinlab.cli import measuring  # noqa: F401
from tinlab.cli import comparing  # noqa: F401
from tinlab.cli import ensembling  # noqa: F401
from tinlab.cli import explain  # noqa: F401
from tinlab.cli import export  # noqa: F401
from tinlab.cli import serve  # noqa: F401
from tinlab.cli import looking  # noqa: F401
from tinlab.cli import data  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line. Errors that a person can mend are one line; the exit code is then 2.

    SIGINT and SIGTERM end a command with 130 and 143: a training after its step, all else at once.
    """
    tune_process()
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        # As an exception, so that what is half made is removed on the way out.
        raise SystemExit(128 + number)

    def once_more(lost: sys.UnraisableHookArgs) -> None:
        # It came where nothing can be raised, such as in a callback from C: a moment later.
        if not (stopped and isinstance(lost.exc_value, SystemExit) and hasattr(signal, "setitimer")):
            unraisable(lost)
            return
        signal.signal(signal.SIGALRM, lambda *_: stop(stopped[0], None))
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    unraisable, sys.unraisablehook = sys.unraisablehook, once_more
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, stop)
    # Not where it is ignored, as behind an & in a script.
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        _run()
    except BaseException:
        if not stopped:
            raise
        # Whatever it was turned into: an import that is interrupted may end in an ImportError.
        name = signal.Signals(stopped[0]).name
        message = f"stopped by {name}; give the same command again, to go on or to begin anew"
        sys.exit(terminal.fail(message, 128 + stopped[0]))
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's
                signal.signal(number, handler)


def _run() -> None:
    try:
        # typer would show a usage error as a box of several lines.
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        sentence = usage_sentence(error)
        sys.exit(terminal.fail(sentence, error.exit_code) if sentence else error.exit_code)
    except TinlabError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank > 0 and error.on_every_rank:
            sys.exit(error.exit_code)
        sys.exit(terminal.fail(f"rank {rank}: {error}" if rank > 0 else str(error), error.exit_code))
    except typer.Abort:
        sys.exit(terminal.fail("stopped", 130))
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if (said := refused(error)) is None:
            raise
        sys.exit(terminal.fail(said, 2))
