"""The libraries of the extra `export`, and keeping them quiet."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from tinlab.errors import TinlabError


def library(name: str) -> Any:
    """Module `name` of onnx, onnxruntime or onnxscript. Raises TinlabError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise TinlabError(f"this needs {missing} ({error}): pip install 'tinlab[export]'") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter and the quantiser print, log and warn of: errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
