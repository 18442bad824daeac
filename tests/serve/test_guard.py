"""Who may ask."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from tinlab.serve.guard import Guard, host_name


async def nothing(scope, receive, send):
    raise AssertionError("not to be called")


def status(guard, method="GET", **headers):
    refusal = guard.refusal(
        method, Headers({name.replace("_", "-"): value for name, value in headers.items()})
    )
    return refusal and refusal[0]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"), ("LocalHost:8000", "localhost"), ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:8000", "::1"), ("localhost.", "localhost"), ("", None), (":80", None), ("a/b", None),
        ("user@localhost", None), ("localhost:port", None), ("[::1", None), ("localhost:99999", None),
        ("[::1]evil", None), ("[::1].", None), ("localhost?", None), ("localhost#", None),
        ("localhost\\@a", None),
        ("localhost\r\n", None), ("localhost,localhost", None), ("localhost:", "localhost"),
    ],
)  # fmt: skip
def test_names_in_host_headers(header, name):
    assert host_name(header) == name


def test_only_this_machines_names_are_answered_to():
    guard = Guard(nothing, "127.0.0.1")
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert status(guard, host=host) is None
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example"):
        assert status(guard, host=host) == 421
    assert status(guard) == 400
    assert status(guard, host="a b/c") == 400


def test_a_bound_or_allowed_name_is_answered_to():
    guard = Guard(nothing, "10.0.0.1", ["Lab.example"])
    assert status(guard, host="10.0.0.1:8000") is None
    assert status(guard, host="lab.example") is None
    assert status(guard, host="10.0.0.2") == 421


def test_bound_everywhere_any_number_is_answered_to_and_no_name():
    for host in ("0.0.0.0", "::"):
        guard = Guard(nothing, host)
        assert status(guard, host="192.168.1.7:8000") is None
        assert status(guard, host="[fe80::1]") is None
        assert status(guard, host="evil.example") == 421


def test_only_own_pages_post():
    guard = Guard(nothing, "127.0.0.1")
    own = {"host": "localhost:8000"}
    assert status(guard, "POST", **own) is None  # a program
    assert status(guard, "POST", **own, origin="http://localhost:8000") is None
    assert status(guard, "POST", **own, origin="https://localhost:8000") is None  # behind a proxy
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:9000",
        "",
        "file://",
        "http://[",
        "localhost:8000",
    ):
        assert status(guard, "POST", **own, origin=origin) == 403
    assert status(guard, "POST", **own, sec_fetch_site="cross-site") == 403
    assert status(guard, "POST", **own, sec_fetch_site="same-site") == 403
    assert status(guard, "POST", **own, sec_fetch_site="same-origin") is None
    assert status(guard, "GET", **own, origin="http://evil.example") is None  # and cannot read it: no CORS
