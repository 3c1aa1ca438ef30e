"""Where networks come from: torchvision, timm, or a function of the user's, each by one name.

torchvision works also where its compiled operators do not fit this build of torch.
"""

import difflib
import importlib
import inspect
import sys
import warnings
from collections.abc import Iterable
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pmsm.errors import SettingsError, import_extra

SOURCES = "timm:<name>, torchvision:<name> or <module>:<function>"

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


def build(source: str) -> nn.Module:
    """A float network by its name, with random weights unless the user's function loads some.

    Args:
        source: "timm:vit_small_patch16_224", "torchvision:resnet18", or "package.module:name", where `name`
            is an `nn.Module`, or a function or class that makes one without arguments.

    Raises:
        SettingsError: no such source, module, name or network.
        MissingExtraError: torchvision or timm is not installed.
    """
    place, colon, name = source.partition(":")
    if not (place and colon and name):
        raise SettingsError(f"unknown network {source!r}. Write {SOURCES}.")
    if place == "torchvision":
        models = torchvision().models
        _refuse_unknown(source, name, models.list_models())
        return models.get_model(name, weights=None)
    if place == "timm":
        torchvision()  # timm imports it, and would fail where it does not fit
        timm = import_extra("timm", "zoo")
        _refuse_unknown(source, name.partition(".")[0], timm.list_models())
        return timm.create_model(name, pretrained=False)
    return _own(source, place, name)


def input_shape(network: nn.Module) -> tuple[int, ...]:
    """Shape of one sample, channels first: what timm says of its network, else 3 x 224 x 224."""
    return tuple(getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224)))


def _refuse_unknown(source: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f" Close names: {', '.join(near)}." if near else ""
        raise SettingsError(f"unknown network {source!r}: {source.partition(':')[0]} has no {name!r}.{hint}")


def _own(source: str, place: str, name: str) -> nn.Module:
    """The network that a name in a module of the user's is, or makes."""
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks a package of its own
        raise SettingsError(
            f"unknown network {source!r}: no module {error.name!r} in the working directory or among the "
            f"installed packages. Write {SOURCES}."
        ) from None
    try:
        found: Any = attrgetter(name)(module)
    except AttributeError:
        raise SettingsError(f"unknown network {source!r}: {place} has no {name!r}.") from None
    network = found() if callable(found) and not isinstance(found, nn.Module) and _bare(found) else found
    if not isinstance(network, nn.Module):
        raise SettingsError(
            f"{source!r} gives {type(network).__name__}, not an nn.Module. Name a network, or a function or "
            f"class that makes one without arguments: def build(): return MyNet(classes=10)."
        )
    return network


def _bare(function: Any) -> bool:
    """Whether it can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True
