"""A signal ends a command once: not within the import of a compiled module, and surely."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAID = "tinlab: stopped by SIGINT; give the same command again, to go on or to begin anew"

BEGIN = """
import os, signal, sys, time
from tinlab.cli.stopping import ended_by_signals

def send():
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
"""

IN_A_CALL_OF_A_COMPILED_MODULE = """
left = int(sys.argv[1])

def look(frame, event, _):
    global left
    if event != "call" or frame.f_code.co_filename.find("enum.py") < 0:
        return
    outer = frame
    while outer is not None and outer.f_code.co_name != "exec_module":
        outer = outer.f_back
    if outer is None or type(outer.f_locals["self"]).__name__ != "ExtensionFileLoader":
        return
    left -= 1
    if left == 0:
        sys.setprofile(None)
        send()

with ended_by_signals():
    sys.setprofile(look)
    import onnx
    time.sleep(30)
print("it goes on")
"""
"""onnx's compiled part makes enumerations by calls of Python's `enum`, and crashes where one raises."""

WITH_A_MODULE_HALF_MADE = """
def look(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_init_module_attrs":
        if "onnx_cpp2py_export" in frame.f_locals["spec"].name:
            sys.setprofile(None)
            send()

with ended_by_signals():
    sys.setprofile(look)
    import onnx
    time.sleep(30)
print("it goes on")
"""
"""A compiled module that is made and not yet in sys.modules would be dropped: onnx's then crashes."""

DROPPED = {
    "an except": """
with ended_by_signals():
    try:
        send()
    except BaseException:
        pass
    time.sleep(30)
print("it goes on")
""",
    "a callback": """
class Dropped:
    def __del__(self):
        send()
        time.sleep(0)  # where nothing can be raised

with ended_by_signals():
    Dropped()
    time.sleep(30)
print("it goes on")
""",
}

THAT_CLEANS_UP = """
with ended_by_signals():
    try:
        send()
        time.sleep(30)
    finally:
        time.sleep(0.5)
        print("cleaned")
"""


def run(program: str, *words: str) -> tuple[int, str, str]:
    """How it ended, what it printed and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program, *words], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("call", [1, 100, 200])
def test_a_signal_in_a_call_of_a_compiled_module(call):
    pytest.importorskip("onnx")
    assert run(IN_A_CALL_OF_A_COMPILED_MODULE, str(call)) == (130, "", SAID)


def test_a_signal_that_finds_a_compiled_module_half_made():
    pytest.importorskip("onnx")
    assert run(WITH_A_MODULE_HALF_MADE) == (130, "", SAID)


@pytest.mark.parametrize("by", DROPPED)
def test_what_a_signal_raises_is_raised_again_where_it_is_dropped(by):
    assert run(DROPPED[by]) == (130, "", SAID)


def test_it_is_raised_once_where_it_is_not():
    assert run(THAT_CLEANS_UP) == (130, "cleaned", SAID)
