"""What a trained network looks at: attribution, filters, errors, and likely wrong labels.

from tinlab.classifier import load
from tinlab.data.pack import Pack
from tinlab.explain import compare, from_split

network = load("runs/RUN")
compare([network], from_split(Pack.open(network.run.pack).split("val"))).image
"""

from __future__ import annotations

from tinlab.explain.attribution import METHODS, find_methods
from tinlab.explain.compare import Chosen, Explanation, compare, explain, from_name, from_split, inputs_of
from tinlab.explain.drawing import Picture
from tinlab.explain.errors import errors_sheet, label_errors, label_errors_sheet
from tinlab.explain.filters import exciting_images, exciting_input, filters_sheet

__all__ = [
    "METHODS",
    "Chosen",
    "Explanation",
    "Picture",
    "compare",
    "errors_sheet",
    "exciting_images",
    "exciting_input",
    "explain",
    "filters_sheet",
    "find_methods",
    "from_name",
    "from_split",
    "inputs_of",
    "label_errors",
    "label_errors_sheet",
]
