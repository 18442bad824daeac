"""Changes to bytes and to JSON values, and strings and numbers that something may trip over."""

from __future__ import annotations

import json
import random
import string
from typing import Any

from strange.sandbox import Fifo, Folder, Link, Node, Socket

WORDS = (
    "", " ", "x" * 5000, "\x00", "a\nb", "a\tb", "\x1b[31mred\x1b]0;title\x07", "\x9b2J", "\u202egpj.exe",
    "\u2066",
    "\ud800", "\udcff", "\u2028", "\ufeff", "\U0010ffff", "é" * 300, "<script>alert(1)</script>",
    "\"'><img src=x>",
    "</title></style><b>", "{{ 7*7 }}", "{% for x in y %}", "${jndi:x}", "%s%n", "../../etc/passwd",
    "/etc/passwd",
    "C:\\x", "..", ".", "~nobody-of-this-name/x", "$\\frac{", "$$", "[/red]", "[bold]", "=1+1", "a,b;c",
    "NaN",
    "__import__('os').system('touch /tmp/tinlab-owned')", "null", "-1", "1e999", "²", "٣", "train+tune",
    "/dev/zero",
)  # fmt: skip
"""Strings that something may trip over."""

NUMBERS = (
    0, -1, 1, 2, 3, 7, 64, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63,
    2**64,
    10**30, 10**400, -(2**63), 0.5, -0.5, 1e-300, 1e300, 1e308, float("inf"), float("-inf"), float("nan"),
    True, False,
)  # fmt: skip


def changed_bytes(rng: random.Random, data: bytes, others: tuple[bytes, ...] = (), most: int = 6) -> bytes:
    """`data` with one to `most` changes."""
    made = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(made) + 1)
        if made and rng.random() < 0.3:  # where formats keep what they say of themselves
            at = min(len(made), rng.choice((rng.randrange(64), max(0, len(made) - 1 - rng.randrange(128)))))
        length = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 65), rng.randrange(1, len(made) + 2)))
        change = rng.randrange(9)
        if change == 0 and made:
            made[min(at, len(made) - 1)] ^= 1 << rng.randrange(8)
        elif change == 1:
            made[at : at + length] = rng.randbytes(length)
        elif change == 2:
            del made[at : at + length]
        elif change == 3:
            made[at:at] = made[at : at + length]
        elif change == 4:
            del made[at:]
        elif change == 5:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
            )
            made[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
        elif change == 6:
            made[at : at + length] = bytes(length)
        elif change == 7 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            made[at : at + length] = other[start : start + length]
        else:
            made[at:at] = rng.randbytes(rng.randrange(1, 17))
        if len(made) > 4 * len(data) + 4096:
            del made[4 * len(data) + 4096 :]
    return bytes(made)


class Twice(dict[str, Any]):
    """An object that has its first key once more when it is written."""


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value at all, and some that JSON does not have."""
    kind = rng.randrange(8)
    if kind == 0:
        return None
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(WORDS)
    if kind == 5:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(12)))
    if depth > 2:
        return []
    if kind == 6:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(odd_value(rng, 3)): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.extend(places(item, (*path, key)))
    return found


def changed_value(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """A copy of a JSON value with some of its parts changed."""
    value = json.loads(json.dumps(value))
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 6))):
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.1:
                value = odd_value(rng)
            continue
        group = value
        for key in path[:-1]:
            group = group[key]
        key, change = path[-1], rng.randrange(8)
        if change == 0:
            del group[key]
        elif change == 1 and isinstance(group, dict):
            group[str(odd_value(rng, 3))] = group.pop(key)
        elif change == 2 and isinstance(group, dict):
            group[rng.choice((*WORDS, "name", "kind", "path"))] = odd_value(rng)
        elif change == 3 and isinstance(group[key], int | float) and not isinstance(group[key], bool):
            group[key] = rng.choice(
                (-group[key], group[key] + 1, group[key] * 1000, str(group[key]), [group[key]])
            )
        elif change == 4:
            other = rng.choice(places(value))
            found = value
            for step in other:
                found = found[step]
            group[key] = json.loads(json.dumps(found))
        elif change == 5 and isinstance(group, list):
            group.extend([group[key]] * rng.choice((1, 3, 50)))
        else:
            group[key] = odd_value(rng)
    return value


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON file, as somebody may have written it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    how = rng.randrange(40)
    if how == 0:
        return ("\ufeff" + text).encode("utf-8", "surrogatepass")
    if how == 1:
        return text.encode("utf-16", "surrogatepass")
    if how == 2:
        return text.encode("utf-8", "surrogatepass")[: rng.randrange(len(text) + 1)]
    if how == 3:
        deep = rng.choice((50, 900, 1100, 100_000))
        opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
        nested = opened * deep + "1" + closed * deep
        at = text.find(":") + 1
        return (nested if rng.random() < 0.3 or not at else f'{text[:at]}{nested}, "x": {text[at:]}').encode(
            "utf-8", "surrogatepass"
        )
    if how == 4 and text.startswith("{") and len(text) > 2:
        return f"{text[:-1]}, {text[1:]}".encode("utf-8", "surrogatepass")  # every key twice
    if how == 5:
        return text.encode("utf-8", "surrogatepass") + rng.choice(
            (b"\0", b"}", b"\n{}", b"//", rng.randbytes(5))
        )
    if how == 6:
        return changed_bytes(rng, text.encode("utf-8", "surrogatepass"))
    if how == 7:
        return rng.choice(
            (b"", b"\xff\xfe", b"null", b"[]", b"{}", b'"x"', b"1e999", b"-", b"NaN", b"9" * 5000)
        )
    return text.encode("utf-8", "replace" if how % 2 else "surrogatepass")


def node_instead(rng: random.Random, node: Node, chance: float = 0.02) -> Node:
    """Now and then, something that is no file."""
    if rng.random() >= chance:
        return node
    return rng.choice(
        (Folder(), Fifo(), Socket(), Link("/dev/zero"), Link("nowhere"), Link("."), Link("/etc/passwd"), b"")
    )
