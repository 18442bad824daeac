"""SIGINT and SIGTERM end a command with one sentence and 130 or 143, wherever they find it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

from tinlab import terminal

AGAIN_SECONDS = 0.01


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While entered, SIGINT and SIGTERM raise SystemExit, which leaves as a sentence and 128 + the signal's
    number.

    As an exception, so that what is half made is removed on the way out; and not within the first lines of a
    compiled module, some of which, such as onnx's, crash where Python code that they call raises.
    """
    stopped: list[int] = []
    can_wait = hasattr(signal, "setitimer")

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if can_wait and _in_a_compiled_module_s_import(frame):
            in_a_moment()
        else:
            raise SystemExit(128 + number)

    def in_a_moment() -> None:
        signal.signal(signal.SIGALRM, lambda _, frame: stop(stopped[0], frame))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    def lost(what: sys.UnraisableHookArgs) -> None:
        # It came where nothing can be raised, such as in a callback from C.
        if can_wait and stopped and isinstance(what.exc_value, SystemExit):
            in_a_moment()
        else:
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


def _in_a_compiled_module_s_import(frame: FrameType | None) -> bool:
    """Whether `frame` was called, at whatever depth, by an extension module that is being made."""
    makers = (ExtensionFileLoader.create_module.__code__, ExtensionFileLoader.exec_module.__code__)
    while frame is not None:
        if frame.f_code in makers:
            return True
        frame = frame.f_back
    return False
