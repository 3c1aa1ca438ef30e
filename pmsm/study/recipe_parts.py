"""What a recipe's words stand for: its data, its float network, the stages of its training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pmsm.ann import data, models
from pmsm.ann.data.images import Batches, Images
from pmsm.ann.models.zoo import build
from pmsm.errors import CheckpointError, DataError, SettingsError
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.study.recipe import DATA, SMOKE_BATCH, SMOKE_IMAGES, Phase, Recipe


@dataclass(frozen=True)
class Sets:
    """The pictures of a recipe, normalized as its float weights expect."""

    train: Images
    test: Images

    @property
    def name(self) -> str:
        """What the set calls itself."""
        return self.train.name.removesuffix(" train")

    @property
    def channels(self) -> int:
        """Of a picture."""
        return self.train.images.shape[1]

    def batches(self, phase: Phase, seed: int) -> Batches:
        """Of training."""
        size = min(phase.batch_size, len(self.train))
        augment: Any = phase.augment
        return Batches(self.train, size, seed=seed, shuffle=True, augment=augment, drop_last=True)

    def calibration(self, recipe: Recipe) -> Batches:
        """The first pictures of the training set."""
        some = self.train.take(slice(0, recipe.calibration_images))
        return Batches(some, min(128, recipe.test_batch, len(some)))

    def tested(self, recipe: Recipe) -> Batches:
        """The whole test set."""
        return Batches(self.test, recipe.test_batch)


@dataclass(frozen=True)
class On:
    """Batches on a device."""

    batches: Batches
    device: torch.device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield x.to(self.device), y.to(self.device)


def load_sets(recipe: Recipe, folder: Path, *, smoke: bool = False) -> Sets:
    """The pictures in `folder`, or in the folder of the recipe's data inside it; a few of them for `smoke`.

    Raises:
        DataError: no set there, or another one.
    """
    inside = folder / recipe.data
    train, test = data.load(inside if inside.is_dir() else folder)
    wanted = DATA[recipe.data]
    found = train.name.removesuffix(" train")
    if found != wanted:
        raise DataError(
            f"the recipe is for {wanted}, and {str(folder)!r} holds {found}. Give the "
            f"folder of {wanted}, or one with a folder {recipe.data}/ in it."
        )
    if recipe.mean is not None and recipe.std is not None:
        train, test = (replace(half, mean=recipe.mean, std=recipe.std) for half in (train, test))
    if smoke:
        train, test = _few(train, SMOKE_BATCH), _few(test, SMOKE_IMAGES)
    return Sets(train, test)


def float_network(recipe: Recipe, sets: Sets, seed: int) -> nn.Module:
    """The float network with random weights.

    Raises:
        SettingsError: no such network.
    """
    return build_network(recipe, sets.channels, sets.train.class_count, seed)


def build_network(recipe: Recipe, channels: int, classes: int, seed: int) -> nn.Module:
    """The same, for pictures of so many channels and classes."""
    torch.manual_seed(seed)
    name = recipe.network
    if ":" in name:
        network = build(name)
    elif name in models.__all__:
        grey = {} if channels == 3 else {"in_channels": channels}
        network = getattr(models, name)(classes=classes, **grey, **dict(recipe.network_options))
    else:
        raise SettingsError(f"no network {name!r} in pmsm.ann.models. There are {', '.join(models.__all__)}.")
    if recipe.size is None:
        return network
    return nn.Sequential(nn.Upsample(size=recipe.size, mode="bilinear"), network)


def fill(recipe: Recipe, network: nn.Module, weights: Path | None) -> None:
    """Load the recipe's float weights, if it names any, from the folder `weights`.

    Raises:
        SettingsError: no folder is given.
        CheckpointError: the file of weights is missing, damaged or of another network.
    """
    if not recipe.weights:
        return
    if weights is None:
        raise SettingsError(f"the recipe starts from {recipe.weights}: give its folder, --weights FOLDER.")
    inner = network if recipe.size is None else network.get_submodule("1")
    load_float(weights / recipe.weights, inner, recipe.new_head)


def load_float(path: Path, network: nn.Module, new_head: str = "") -> None:
    """Fill `network` from the state dict at `path`, but for the layer `new_head`; counters may be missing.

    Raises:
        CheckpointError: not readable, or of another network.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(
            f"cannot read the weights {str(path)!r}: {cause}. Give the folder that holds {path.name}, "
            f"--weights FOLDER, in safetensors."
        ) from cause
    wanted = network.state_dict()
    if new_head:
        given = {name: value for name, value in given.items() if not f"{name}.".startswith(f"{new_head}.")}
        given |= {name: value for name, value in wanted.items() if name.startswith(f"{new_head}.")}
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    given = counters | given
    differing = [
        name
        for name in sorted(given.keys() | wanted.keys())
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{str(path)!r} holds the weights of another network than {type(network).__name__}: "
            f"{', '.join(differing[:4])} differ{'s' * (len(differing) == 1)}, of {len(wanted)}. Give the "
            f"right file; if only the classes differ, name the last layer in the recipe, new_head='head'."
        )
    network.load_state_dict(given)


@dataclass(frozen=True)
class Stages:
    """Fewer levels in later epochs: `on_epoch` of `pmsm.train`.

    A site of other levels gets its method with the new ones, and the network is calibrated anew, with the
    weights as they are by then. The levels follow the epoch alone, so that a resumed run has the right ones.
    """

    recipe: Recipe
    batches: Iterable[Any]

    def __call__(self, epoch: int, qann: Any) -> None:
        """Bring every site to the levels of `epoch`."""
        levels = [levels for first, levels in self.recipe.progressive if first <= epoch][-1]
        method = self.recipe.build_method(levels)
        sites: list[Any] = [module for module in qann.modules() if isinstance(module, Quantizer)]
        if all(site.method == method for site in sites):
            return
        for site in sites:
            site.method = method
        calibrated(self.recipe, qann, self.batches)


def calibrated(recipe: Recipe, qann: Any, batches: Iterable[Any]) -> Any:
    """`qann`, calibrated by the recipe's rule."""
    rule = {"rule": recipe.rule} if recipe.rule else {}
    return calibrate(qann, batches, **rule)


def _few(images: Images, count: int) -> Images:
    """Some pictures, evenly over the set, so that they are of several classes."""
    index = torch.linspace(0, len(images) - 1, count).long()
    return images.take(index)
