"""Numbers, units and lists as a person would say them."""

from __future__ import annotations

from collections.abc import Sequence

SPLIT_WORDS = {
    "val": "validation images",
    "tune": "images held out of the training set",
    "test": "test images",
}


def split_words(split: str) -> str:
    """What the images of a split are."""
    return SPLIT_WORDS.get(split, f"images of {split}")


def percent(value: float, digits: int = 2) -> str:
    """`58.12%`."""
    return f"{value:.{digits}f}%"


def count(value: float, noun: str, several: str = "") -> str:
    """`3 epochs`, `1 epoch`, `2.5 epochs`; `several` where the plural is not made by an s."""
    return f"{decimal(value)} {noun if value == 1 else several or noun + 's'}"


def listed(words: Sequence[str], most: int) -> str:
    """`a`, `a and b`, `a, b and 3 others`."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} others"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def decimal(value: float) -> str:
    """A number with up to two decimals: `3`, `2.5`, `4.99`."""
    return f"{round(value, 2) + 0:,.2f}".rstrip("0").rstrip(".")  # + 0: no -0


def duration(seconds: float) -> str:
    """A length of time as a person would say it."""
    if seconds < 90:
        return count(round(seconds, 1 if seconds < 10 else 0), "second")
    if seconds < 90 * 60:
        return count(round(seconds / 60, 1 if seconds < 600 else 0), "minute")
    return count(round(seconds / 3600, 1), "hour")


def capital(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def spaced(name: str) -> str:
    """A name of code as words."""
    return name.replace("_", " ")
