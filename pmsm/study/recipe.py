"""What a reproducible run is: one frozen recipe that says all that decides its numbers, but data and seed."""

import runpy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pmsm.errors import SettingsError
from pmsm.methods import METHODS, Method

DATA = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion-mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
}
"""A recipe's word for its data, also the folder it may lie in, and the name that the set gives itself."""

SMOKE_BATCH, SMOKE_IMAGES, SMOKE_TIMESTEPS, SMOKE_LR = 4, 4, (1, 2), 1e-3


@dataclass(frozen=True)
class Phase:
    """One training, float or quantization-aware: how long, on what batches, and what `pmsm.train` is given.

    Args:
        epochs: over the whole training set.
        augment: of the pictures, as `pmsm.ann.data.Batches` takes it.
        others: as in `pmsm.train`.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    augment: str = "crop-flip"
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    layer_decay: float = 1.0
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float = 0.0
    precision: str = "auto"

    def arguments(self) -> dict[str, Any]:
        """What `pmsm.train` takes of it."""
        own = ("batch_size", "augment")
        return {name: value for name, value in asdict(self).items() if name not in own}

    def smoke(self, epochs: int = 1) -> "Phase":
        """The same, of a step per epoch, and so short ones that a network of noise survives them."""
        lr = min(self.lr, SMOKE_LR)
        return replace(self, epochs=epochs, lr=lr, batch_size=SMOKE_BATCH, warmup_epochs=0.0)


@dataclass(frozen=True)
class Recipe:
    """A run from a float network to accuracy over T.

    Args:
        data: key of `DATA`.
        network: function of `pmsm.ann.models`, or a source that `pmsm explain` takes.
        network_options: (name, value) of what that function is given besides classes and channels.
        qat: training of the quantized network; None: calibrated only.
        pretraining: of the float network from random weights; None: its weights are given.
        weights: name of the file of float weights (safetensors, a state dict), "" for random ones.
        new_head: name of the layer that starts anew, as the weights are of other classes; "" for none.
        size: side that pictures are enlarged to by the network's first layer; None: as they are.
        mean, std: of the given weights; None: of the data.
        method, levels: key of `METHODS`, and its codes per site.
        progressive: (first epoch, levels) of each stage of QAT, from 0 on and ending at `levels`; () for one
            stage.
        distill, temperature: share of the float network's answers in the loss of QAT; 0: labels alone.
        rule: of calibration; "" for the default.
        calibration_images: from the start of the training set.
        test_batch: pictures in a batch while testing; of memory alone.
        timesteps: at which accuracy is measured, on the whole test set.
        budget: what to expect of time and memory, and where that was measured.
        note: what whoever reads the numbers must know.

    Raises:
        SettingsError: unknown data or method, no start for the float network, or stages that do not fit.
    """

    data: str
    network: str
    qat: Phase | None
    network_options: tuple[tuple[str, Any], ...] = ()
    pretraining: Phase | None = None
    weights: str = ""
    new_head: str = ""
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    method: str = "pmsm"
    levels: int = 9
    progressive: tuple[tuple[int, int], ...] = ()
    distill: float = 0.0
    temperature: float = 4.0
    rule: str = ""
    calibration_images: int = 1024
    test_batch: int = 250
    timesteps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    budget: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for word, known in (("data", DATA), ("method", METHODS)):
            if getattr(self, word) not in known:
                raise SettingsError(
                    f"a recipe needs {word} out of {', '.join(known)}, got {getattr(self, word)!r}."
                )
        if self.network_options and ":" in self.network:
            raise SettingsError(
                f"a recipe's network_options go to a function of pmsm.ann.models, and {self.network!r} is "
                f"none. Set them in that function itself."
            )
        if not self.weights and self.pretraining is None:
            raise SettingsError(
                "a recipe needs a trained float network: weights='file.safetensors', or "
                "pretraining=Phase(...)."
            )
        if (
            not self.timesteps
            or min(self.timesteps) < 1
            or list(self.timesteps) != sorted(set(self.timesteps))
        ):
            raise SettingsError(f"a recipe needs rising timesteps >= 1, got {self.timesteps}.")
        self._refuse_stages()

    def build_method(self, levels: int | None = None) -> Method:
        """The method with its levels, or with others."""
        make: Any = METHODS[self.method]
        return make(levels=self.levels if levels is None else levels)

    def with_options(self, method: str | None = None, levels: int | None = None) -> "Recipe":
        """The same for another method or number of levels, at which its stages then end.

        >>> stages = ((0, 33), (6, 17), (12, 9))
        >>> recipe = Recipe(
        ...     "cifar10", "resnet20", Phase(18, 0.01), weights="w", progressive=stages
        ... )
        >>> recipe.with_options(levels=17).progressive
        ((0, 33), (6, 17))
        """
        recipe = self if method is None else replace(self, method=method)
        if levels is None or levels == self.levels:
            return recipe
        kept = [stage for stage in self.progressive[:-1] if stage[1] > levels]
        last = [(self.progressive[len(kept)][0], levels)] if self.progressive else []
        return replace(recipe, levels=levels, progressive=tuple(kept + last))

    def smoke(self) -> "Recipe":
        """The same path in a step per epoch and at most two stages: whether it runs, not what it gives."""
        stages = tuple((epoch, levels) for epoch, (_, levels) in enumerate(self.progressive[-2:]))
        return replace(
            self,
            qat=self.qat and self.qat.smoke(max(1, len(stages))),
            pretraining=self.pretraining and self.pretraining.smoke(),
            progressive=stages, calibration_images=SMOKE_BATCH, test_batch=SMOKE_IMAGES,
            timesteps=SMOKE_TIMESTEPS,
        )  # fmt: skip

    def _refuse_stages(self) -> None:
        epochs, levels = ([stage[i] for stage in self.progressive] for i in (0, 1))
        if not self.progressive:
            return
        rising = epochs == sorted(set(epochs)) and epochs[0] == 0
        falling = levels == sorted(set(levels), reverse=True) and levels[-1] == self.levels
        if not (rising and falling) or self.qat is None or epochs[-1] >= self.qat.epochs:
            length = 0 if self.qat is None else self.qat.epochs
            raise SettingsError(
                f"a recipe needs stages (first epoch, levels) that start at epoch 0, rise in epochs below "
                f"{length} and fall in levels to {self.levels}; got {self.progressive}. Write such as "
                f"((0, 33), (6, 17), (12, {self.levels}))."
            )


def recipe_of(row: dict[str, Any]) -> Recipe:
    """The recipe that `dataclasses.asdict` has written down, perhaps by way of JSON."""
    made: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    for pairs in ("progressive", "network_options"):
        made[pairs] = tuple(tuple(pair) for pair in row[pairs])
    for phase in ("qat", "pretraining"):
        made[phase] = row[phase] and Phase(**row[phase])
    return Recipe(**made)


def read_recipe(path: Path) -> Recipe:
    """The `RECIPE` that the Python file at `path` defines; the file is run, as Python runs it.

    Raises:
        SettingsError: no such file, or none of that name in it.
    """
    if not path.is_file():
        raise SettingsError(
            f"no recipe {str(path)!r}. Give a file that defines RECIPE = Recipe(...), such as "
            f"recipes/resnet20_cifar10.py; without one, pmsm train --data FOLDER."
        )
    found = runpy.run_path(str(path)).get("RECIPE")
    if not isinstance(found, Recipe):
        raise SettingsError(
            f"{str(path)!r} defines no RECIPE. Write: from pmsm.study.recipe import Phase, Recipe; "
            f"RECIPE = Recipe(data='cifar10', network='resnet20', qat=Phase(epochs=6, lr=0.01), ...)."
        )
    return found
