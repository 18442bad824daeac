"""A signal that comes while a compiled module is being imported waits until it is."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SIGNALLED_IN_AN_IMPORT = """
import os, signal, sys
from tinlab.cli.stopping import ended_by_signals

left = int(sys.argv[1])

def send(frame, event, _):
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
        os.kill(os.getpid(), signal.SIGINT)
        sys.setprofile(None)

signal.signal(signal.SIGINT, signal.default_int_handler)
with ended_by_signals():
    sys.setprofile(send)
    import onnx
    import time
    time.sleep(30)
print("it goes on")
"""
"""onnx's compiled part makes enumerations by calls of Python's `enum`, and crashes where one raises."""


@pytest.mark.parametrize("call", [1, 100, 200])
def test_a_signal_in_the_import_of_a_compiled_module(call):
    pytest.importorskip("onnx")
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_IN_AN_IMPORT, str(call)], capture_output=True, text=True, timeout=120
    )
    said = "tinlab: stopped by SIGINT; give the same command again, to go on or to begin anew"
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, ""), done.stderr
    assert done.stderr.strip() == said
