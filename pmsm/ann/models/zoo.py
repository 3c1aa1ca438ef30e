"""torchvision as a zoo of networks, also where its compiled operators do not fit this build of torch."""

import sys
import warnings
from types import ModuleType

import torch

from pmsm.errors import import_extra

# The operators whose names torchvision needs merely to be imported; only detection calls them.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: torch.library.Library | None = None  # its operators live as long as it does


def torchvision() -> ModuleType:
    """The module `torchvision`, imported.

    Built for CUDA and set beside a CPU build of torch, it cannot load its compiled operators and then fails
    to import. In that case their names are declared here without an implementation: all but detection works.

    Raises:
        MissingExtraError: torchvision is not installed.
        RuntimeError: torchvision and torch do not fit for another reason.
    """
    with warnings.catch_warnings():
        # The picture readers of torchvision fail to load for the same reason; nobody here uses them.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            return import_extra("torchvision", "zoo")
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
        _declare_operators()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        return import_extra("torchvision", "zoo")


def _declare_operators() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            _library.define(schema)
