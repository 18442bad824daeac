"""SIGINT and SIGTERM end a command with one sentence and 130 or 143, wherever they find it."""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec
from types import FrameType

from tinlab import terminal

AGAIN_SECONDS = 0.01
IMPORT_SYSTEM = module_from_spec.__code__.co_filename
"""Of the part that makes modules of their specifications, and holds these as `spec`."""


class Stopped(SystemExit):
    """What a signal raises: unlike SystemExit's own, it can be referred to weakly."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While entered, SIGINT and SIGTERM raise SystemExit, which leaves as a sentence and 128 + the signal's
    number.

    As an exception, so that what is half made is removed on the way out; once more where it was lost on its
    way; and not while a compiled module is being imported, some of which, such as onnx's, crash where Python
    code that they call raises, or where they are dropped half made.
    """
    stopped: list[int] = []
    raised: list[weakref.ref[Stopped]] = []
    can_wait = hasattr(signal, "setitimer")

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        leave(frame)

    def leave(frame: FrameType | None) -> None:
        if can_wait:
            signal.signal(signal.SIGALRM, again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            if _while_a_compiled_module_is_imported(frame):
                return
        error = Stopped(128 + stopped[0])
        raised[:] = [weakref.ref(error)]
        try:
            raise error
        finally:
            del error  # this frame is in its traceback: it would refer to itself, and live on

    def again(_: int, frame: FrameType | None) -> None:
        if raised and raised[0]() is not None:  # it is on its way out
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:  # or was dropped: by an `except`, a callback from C, or the compiler as it folds a constant
            leave(frame)

    def lost(what: sys.UnraisableHookArgs) -> None:
        if not (can_wait and isinstance(what.exc_value, Stopped)):
            unraisable(what)

    unraisable, sys.unraisablehook = sys.unraisablehook, lost
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if can_wait else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTERM, stop)
    # Not where it is ignored, as behind an & in a script.
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except BaseException:
        if not stopped:
            raise
        if can_wait:
            signal.setitimer(signal.ITIMER_REAL, 0)
        # Whatever it was turned into: an import that is interrupted may end in an ImportError.
        name = signal.Signals(stopped[0]).name
        message = f"stopped by {name}; give the same command again, to go on or to begin anew"
        sys.exit(terminal.fail(message, 128 + stopped[0]))
    finally:
        if stopped and can_wait:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's
                signal.signal(number, handler)


def _while_a_compiled_module_is_imported(frame: FrameType | None) -> bool:
    """Whether `frame` was called, at whatever depth, by the import of an extension module."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            loader = getattr(frame.f_locals.get("spec"), "loader", None)
            if isinstance(loader, ExtensionFileLoader):
                return True
        frame = frame.f_back
    return False
