"""One network, one data set, one method, one folder: what the commands train, convert and evaluate share."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pmsm.ann import data
from pmsm.ann.checkpoint import load_weights
from pmsm.ann.data.events import FrameBatches, Framing, WindowBatches, load_events
from pmsm.ann.data.images import Batches
from pmsm.ann.models.small import SmallResNet
from pmsm.ann.models.zoo import build
from pmsm.ann.train import evaluate, train
from pmsm.errors import CheckpointError, SettingsError
from pmsm.files import write_atomic
from pmsm.graph import Network
from pmsm.methods import METHODS
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.snn.verify import Verification, verify
from pmsm.study.findings import Watch, unwatched
from pmsm.study.recipe import Phase
from pmsm.study.recipe_run import FORMAT as RECIPE_FORMAT
from pmsm.study.recipe_run import load_recipe_run

FLOAT_LR, QAT_LR, QAT_SHARE = 0.1, 0.02, 0.5  # as in the demo
CALIBRATION_SAMPLES, VERIFIED_SAMPLES = 1024, 256
EVENTS_PER_UNIT = 4
"""A pixel with so many events in a frame is a grey value of 1."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """Settings of a run; with the data they decide its numbers.

    Args:
        data: a folder of images (see `pmsm.ann.data.load`), "" for scikit-learn's digits, or recordings of
            events as "nmnist:FOLDER" (see `pmsm.ann.data.events.load_events`).
        network: "small" for SmallResNet, or a source that `pmsm explain` takes.
        timesteps: frames that a recording is cut into, of equally many events; an image is shown for so many
            steps.
        method: key of `METHODS`.
        levels: codes per site.
        epochs: of the float network; QAT takes half as many.
        batch_size: of training.
        seed: of weights, order and augmentation.
    """

    data: str
    network: str = "small"
    timesteps: int = 8
    method: str = "pmsm"
    levels: int = 9
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingsError(f"there is no method {self.method!r}; choose one of {', '.join(METHODS)}.")
        numbers = {name: getattr(self, name) for name in ("timesteps", "epochs", "batch_size")}
        if small := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
            raise SettingsError(f"an experiment needs {', '.join(numbers)} >= 1, got {', '.join(small)}.")

    @property
    def has_events(self) -> bool:
        """Whether the data are recordings of events."""
        return ":" in self.data and not Path(self.data).exists()


@dataclass(frozen=True)
class Source:
    """The data of an experiment, ready to train, calibrate and test on."""

    name: str
    channels: int
    classes: int
    train: Any  # batches of [N, C, H, W]
    calibration: Any
    valid: Any
    test: Iterable[tuple[Tensor, Tensor]]  # of [T, N, C, H, W] recordings, or of images
    events: int | None  # in all test recordings


def load_source(experiment: Experiment) -> Source:
    """Read the data.

    Raises:
        DataError, MissingExtraError: as the data set says.
    """
    shuffled = {"seed": experiment.seed, "shuffle": True, "drop_last": True}
    if not experiment.has_events:
        train_set, test_set = data.load(experiment.data or None)
        size = min(experiment.batch_size, len(train_set))
        augment = "crop-flip" if train_set.images.shape[1] == 3 else "shift"
        return Source(
            train_set.name.removesuffix(" train"), train_set.images.shape[1], train_set.class_count,
            Batches(train_set, size, augment=augment, **shuffled),  # pyright: ignore[reportArgumentType]
            Batches(train_set.take(slice(0, CALIBRATION_SAMPLES)), 128), Batches(test_set, 250),
            Batches(test_set, 250), None,
        )  # fmt: skip
    framing = Framing(n_event_bins=experiment.timesteps)
    train_set, test_set = (_framed(events, framing) for events in load_events(experiment.data))
    size = min(experiment.batch_size, len(train_set))
    frames = FrameBatches(train_set, size, augment="shift", **shuffled)  # pyright: ignore[reportArgumentType]
    calibration = FrameBatches(train_set.take(slice(0, CALIBRATION_SAMPLES)), 128, seed=experiment.seed)
    test = FrameBatches(test_set, 100)
    return Source(
        train_set.name.removesuffix(" train"), train_set.frames.shape[2], train_set.class_count,
        WindowBatches(frames), WindowBatches(calibration), WindowBatches(test, whole=True), test,
        int(test_set.frames.sum()),
    )  # fmt: skip


def run_experiment(
    experiment: Experiment,
    out: Path,
    say: Say = lambda line: None,
    *,
    resume: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Train in float, quantize, calibrate, train again; the row that `out`/run.json holds as well.

    Raises:
        PMSMError: whatever step refuses, in its own words.
    """
    source = load_source(experiment)
    say(f"{source.name}: {len(source.train)} batches per epoch, {source.classes} classes")

    def learn(network: nn.Module, name: str, epochs: int, lr: float) -> list[dict[str, float | None]]:
        """Train with the settings of the experiment; its curve over the epochs."""
        history = train(network, source.train, source.valid, epochs=epochs, lr=lr,
                        warmup_epochs=min(1, epochs / 4), seed=experiment.seed,
                        checkpoint=out / f"{name}.safetensors", resume=resume)  # fmt: skip
        return [
            {"loss": epoch.loss, "accuracy": epoch.accuracy, "valid_accuracy": epoch.valid_accuracy}
            for epoch in history.epochs
        ]

    ann = float_network(experiment, source)
    float_curve = learn(ann, "float", experiment.epochs, FLOAT_LR)
    float_accuracy = evaluate(ann, watch(source.valid, "float network"))
    say(f"float network: {float_accuracy:.2f} %")
    qann = calibrate(quantized(experiment, source, ann), watch(source.calibration, "calibrate"))
    qann_curve = learn(qann, "qann", max(1, round(experiment.epochs * QAT_SHARE)), QAT_LR)
    qann_accuracy = evaluate(qann, watch(source.valid, "quantized network"))
    say(f"quantized network: {qann_accuracy:.2f} %")
    row = {
        "format": "pmsm-experiment", "version": 1, "experiment": asdict(experiment), "data": source.name,
        "float_accuracy": float_accuracy, "float_curve": float_curve,
        "qann_accuracy": qann_accuracy, "qann_curve": qann_curve,
    }  # fmt: skip
    write_atomic(out / "run.json", json.dumps(row, indent=1), CheckpointError)
    return row


def load_experiment(folder: Path) -> tuple[Experiment, Source, Network]:
    """Settings, data and trained quantized network of a run, with a recipe or without.

    Raises:
        CheckpointError: no run in the folder, or a damaged one.
    """
    try:
        row = json.loads((folder / "run.json").read_text())
        if row.get("format") == RECIPE_FORMAT:
            return _of_recipe(folder, row)
        experiment = Experiment(**row["experiment"])
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise CheckpointError(
            f"no finished run in {str(folder)!r} ({cause}). Make one: pmsm train --data ... --out {folder}."
        ) from cause
    source = load_source(experiment)
    qann = quantized(experiment, source, float_network(experiment, source))
    load_weights(folder / "qann.safetensors", qann)
    return experiment, source, qann.eval()


def _of_recipe(folder: Path, row: dict[str, Any]) -> tuple[Experiment, Source, Network]:
    """A run of `pmsm train RECIPE`."""
    recipe, sets, qann = load_recipe_run(folder, row)
    phase = recipe.qat or recipe.pretraining or Phase(1, QAT_LR)
    experiment = Experiment(
        data=row["folder"], network=recipe.network, timesteps=max(recipe.timesteps), method=recipe.method,
        levels=recipe.levels, epochs=phase.epochs, batch_size=phase.batch_size, seed=row["seed"],
    )  # fmt: skip
    test = sets.tested(recipe)
    source = Source(
        sets.name, sets.train.images.shape[1], sets.train.class_count, sets.batches(phase, row["seed"]),
        sets.calibration(recipe), test, test, None,
    )  # fmt: skip
    return experiment, source, qann


def prove(qann: Network, source: Source) -> Verification:
    """Compare with the conversion on the first test samples, single frames where there are events."""
    x = next(iter(source.valid))[0][:VERIFIED_SAMPLES]
    return verify(qann, convert(qann), x)


def evaluate_over_time(
    qann: Network, source: Source, timesteps: int, *, mode: str | None = None, burst: int | None = None,
    reset_each_frame: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy in percent and spikes after each step, on the stream or on images shown for `timesteps` steps.

    Returns:
        accuracy, spikes_per_neuron: one number per step; samples; for events also spikes_per_event, all
        spikes over all events.

    Raises:
        SettingsError: more steps than the recordings have frames.
    """
    stream = source.events is not None
    frames = len(next(iter(source.test))[0]) if stream else timesteps
    if timesteps > frames:
        raise SettingsError(
            f"the recordings were cut into {frames} frames, and {timesteps} steps were asked for. Train with "
            f"--timesteps {timesteps}, or evaluate fewer."
        )
    snn = convert(qann, mode=mode, burst=burst)
    right, sent = torch.zeros(timesteps), torch.zeros(timesteps, dtype=torch.float64)
    neurons = samples = 0
    for x, y in source.test:
        if stream:
            run = simulate(snn, x[:timesteps], stream=True, reset_each_frame=reset_each_frame)
        else:
            run = simulate(snn, x, timesteps)
        right += torch.tensor([float((out.argmax(1) == y).sum()) for out in run.outputs])
        for spikes in run.spikes.values():
            sent += (spikes.positive + spikes.negative).sum(1)
        neurons, samples = sum(s.neurons for s in run.spikes.values()), samples + len(y)
    row: dict[str, Any] = {
        "accuracy": (100 * right / samples).tolist(),
        "spikes_per_neuron": (sent.cumsum(0) / (samples * neurons)).tolist(),
        "samples": samples,
    }
    if source.events is not None:
        row["spikes_per_event"] = float(sent.sum()) / source.events
    return row


def told_over_time(row: dict[str, Any]) -> str:
    """What `evaluate_over_time` found, a line per step."""
    steps = zip(row["accuracy"], row["spikes_per_neuron"], strict=True)
    lines = [
        f"T={t:<3d} accuracy {accuracy:6.2f} %   spikes per neuron {spikes:7.3f}"
        for t, (accuracy, spikes) in enumerate(steps, 1)
    ]
    if "spikes_per_event" in row:
        lines.append(f"spikes per event {row['spikes_per_event']:.2f}")
    return "\n".join(lines)


def _framed(events: Any, framing: Framing) -> Any:
    return replace(events.to_frames(framing), scale=1 / EVENTS_PER_UNIT)


def float_network(experiment: Experiment, source: Source) -> nn.Module:
    """The untrained network of an experiment."""
    torch.manual_seed(experiment.seed)
    if experiment.network == "small":
        return SmallResNet(source.channels, source.classes)
    return build(experiment.network)


def quantized(experiment: Experiment, source: Source, ann: nn.Module) -> Network:
    """`ann` with a quantizer of the experiment's method at every site, not calibrated."""
    make: Any = METHODS[experiment.method]
    return quantize(ann, make(levels=experiment.levels), next(iter(source.valid))[0][:2])
