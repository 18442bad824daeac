"""Where the values of a paper's recipe come from, in a word."""

from __future__ import annotations

from tinlab.recipe import Provenance


def stated(why: str) -> Provenance:
    """The paper says so; `why` says where."""
    return Provenance(kind="stated", why=why)


def inferred(why: str) -> Provenance:
    """It follows from what the paper says."""
    return Provenance(kind="inferred", why=why)


def assumed(why: str) -> Provenance:
    """The paper does not say; `why` says what its field would have done."""
    return Provenance(kind="assumed", why=why)


def ours(why: str) -> Provenance:
    """We depart from the paper; `why` says to what, and why."""
    return Provenance(kind="changed", why=why)
