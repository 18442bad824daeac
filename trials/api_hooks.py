"""Loaded by schemathesis: half of the sound forms that it makes get a picture for their first file.

A schema cannot say what a picture is, so that made bytes alone would never get past the decoder. Names of
models and classes that it makes up are left out of every other of those forms, for the same reason.
"""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis
from strangers import pictures

PUT_IN = "X-Picture"
"""Header of the requests that got a picture."""
CHOICES = {"models", "model", "target", "method"}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    body = case.body
    sound = case.meta is not None and case.meta.generation.mode.is_positive
    if not sound or not isinstance(body, dict):
        return
    number = zlib.crc32(repr(body).encode("utf-8", "surrogatepass"))  # the same for the same form
    if number % 2:
        return
    picture = pictures()[number // 4 % len(pictures())]
    if isinstance(body.get("images"), list) and body["images"]:
        body["images"] = [picture, *body["images"][1:][: number // 8 % 2]]
    if "image" in body:
        body["image"] = picture
    case.headers[PUT_IN] = "yes"
    for name in CHOICES & set(body):
        if number // 2 % 2:
            del body[name]


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """A picture is no text, so that schemathesis looks for a form that has one to be refused."""
    return not (PUT_IN in case.headers and type(failure).__name__ == "AcceptedNegativeData")
