"""torchvision, also where its compiled operators do not load.

torchvision's wheel on PyPI is built against torch with CUDA; beside a CPU-only torch its library of detection
operators cannot be loaded, and since importing the package looks two of them up by name, nothing of it can be
used. Classification needs none of them: it is enough that the names are known.
"""

from __future__ import annotations

from types import ModuleType

_LOOKED_UP = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a torch.library.Library takes its operators with it when it goes


def import_torchvision() -> ModuleType:
    """The torchvision package. Raises ImportError where it is not installed."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import sys

        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        library = torch.library.Library("torchvision", "FRAGMENT")
        for signature in _LOOKED_UP:
            library.define(signature)
        _declared.append(library)
        import torchvision
    return torchvision
