"""The command line: each command calls one library function and shows what it returns.

Modules that take long to import are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys

import typer

from tinlab import terminal
from tinlab.cli.common import UsageError, app, usage_sentence
from tinlab.cli.stopping import ended_by_signals
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
    with ended_by_signals():
        _run()


def _run() -> None:
    try:
        # typer would show a usage error as a box of several lines.
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        sentence = usage_sentence(error)
        sys.exit(terminal.fail(sentence, error.exit_code) if sentence else error.exit_code)
    except TinlabError as error:
        given = os.environ.get("RANK", "0")
        rank = int(given) if given.isdecimal() else 0
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
