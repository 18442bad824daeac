"""The command line inside this process."""

from __future__ import annotations

import signal
import sys

import pytest

from tinlab import cli


def fails(words, folder, monkeypatch, capsys, expected) -> None:
    """The command line ends with code 2 and one sentence that holds `expected`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["tinlab", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    assert expected in said
