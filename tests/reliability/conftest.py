"""The trials are functions that the tests here run with few cases: `trials/` is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

TRIALS = str(Path(__file__).resolve().parents[2] / "trials")
if TRIALS not in sys.path:
    # Last: no file of theirs may hide a module of Python's.
    sys.path.append(TRIALS)
