from types import SimpleNamespace

import pytest

from tinlab import terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_work_that_takes_long_writes_a_line_now_and_then_where_no_terminal_is(clock, capsys):
    with terminal.counting("corrupt [val]") as count:
        for done in range(0, 100_001, 100):
            clock.now = 100 + done / 1000
            count(done, 100_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "corrupt [val]: 30,000 of 100,000 images · 1:10 left",
        "corrupt [val]: 60,000 of 100,000 images · 0:40 left",
        "corrupt [val]: 90,000 of 100,000 images · 0:10 left",
    ]


def test_a_line_says_no_more_than_is_known(clock, capsys):
    with terminal.counting("download", "bytes") as count:
        clock.now += 40
        count(0, 2_000_000)
        clock.now += 40
        count(1_000_000, None)
    assert capsys.readouterr().err.splitlines() == ["download: 0 of 2 MB", "download: 1 MB"]


def test_short_work_writes_nothing(clock, capsys):
    with terminal.counting("pack the images") as count:
        clock.now += 29
        count(10, 10)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
