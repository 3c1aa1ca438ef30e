"""How a training run reaches the disk after every epoch, and how it comes back bit for bit or not at all.

One safetensors file, written atomically, never unpickled: `model.<key>`, `optimizer.<kind>.<parameter>`,
`rng.<stream>` (uint8), and where they are used `ema.<key>` (averaged weights) and `scaler.<number>` (fp16),
under a JSON header with the epochs done and the settings they were trained with.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from pmsm.ann.schedule import DEFAULTS
from pmsm.errors import CheckpointError
from pmsm.files import write_atomic

FORMAT = "pmsm-training"
FORMAT_VERSION = 1

Streams = Mapping[str, torch.Generator]


class Part(Protocol):
    """Something else that the next epoch depends on."""

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors()` gave."""
        ...


Parts = Mapping[str, Part]
"""What else the next epoch depends on, by the prefix of its tensors."""
NONE: Parts = MappingProxyType({})


def save_training(
    path: str | Path, network: nn.Module, optimizer: Optimizer, streams: Streams, settings: dict,
    epochs: list[dict], parts: Parts = NONE,
) -> None:  # fmt: skip
    """Write all that the next epoch depends on; what stood at `path` stays until the new file is whole.

    Args:
        streams: the generators that training draws from, by name.
        settings: JSON-able; `load_training` goes on only under the same.
        epochs: one JSON-able row per finished epoch.

    Raises:
        CheckpointError: the folder cannot be written, the disk is full, or the network's state is no tensors.
    """
    tensors = _model_tensors(network) | _optimizer_tensors(network, optimizer) | _stream_tensors(streams)
    for prefix, part in parts.items():
        tensors |= _part_tensors(prefix, part)
    training = {"settings": settings, "epochs": epochs, "torch": str(torch.__version__)}
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "training": json.dumps(training)}
    # Clones, because safetensors refuses memory that two names share (tied weights).
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomic(path, safetensors.torch.save(whole, metadata=header), error=CheckpointError)


def save_network(path: str | Path, network: nn.Module) -> None:
    """Write a network that was not trained to a file as training leaves one.

    Raises:
        CheckpointError: as `save_training`.
    """
    save_training(path, network, torch.optim.SGD(network.parameters(), lr=0.0), {}, {"epochs": 0}, [])


def load_training(
    path: str | Path, network: nn.Module, optimizer: Optimizer, streams: Streams, settings: dict,
    parts: Parts = NONE,
) -> list[dict]:  # fmt: skip
    """Fill network, optimizer, streams and parts from `path`, and return the rows of the epochs done.

    Everything is compared first: after a refusal, nothing has been changed.

    Raises:
        CheckpointError: the file is truncated, foreign, of another network, optimizer or data loader, or was
            trained with other settings.
    """
    header, tensors = _read(path)
    training = _training(path, header)
    _check_settings(path, training["settings"], settings)
    rng = _section(tensors, "rng.")
    moments = _section(tensors, "optimizer.")
    saved = {prefix: _section(tensors, f"{prefix}.") for prefix in parts}
    others = {name for section in (rng, moments, *saved.values()) for name in section}
    model = {name: value for name, value in tensors.items() if name not in others}
    _check_tensors(path, "network", model, _model_tensors(network))
    _check_tensors(path, "random streams", rng, _stream_tensors(streams))
    _check_moments(path, moments, dict(network.named_parameters()))
    for prefix, part in parts.items():
        _check_tensors(path, prefix, saved[prefix], _part_tensors(prefix, part))
    network.load_state_dict({name.removeprefix("model."): value for name, value in model.items()})
    _load_optimizer(network, optimizer, moments)
    for name, stream in streams.items():
        stream.set_state(rng[f"rng.{name}"])
    for prefix, part in parts.items():
        part.load({name.removeprefix(f"{prefix}."): value for name, value in saved[prefix].items()})
    return training["epochs"]


def finished_epochs(path: str | Path) -> int:
    """How many epochs the checkpoint at `path` holds.

    Raises:
        CheckpointError: the file is truncated or foreign.
    """
    header, _ = _read(path)
    return len(_training(path, header)["epochs"])


def read_training(path: str | Path) -> tuple[dict, list[dict], dict[str, Tensor]]:
    """Settings, one row per finished epoch, and the network's state dict of the checkpoint at `path`.

    Raises:
        CheckpointError: the file is truncated or foreign.
    """
    header, tensors = _read(path)
    training = _training(path, header)
    model = _section(tensors, "model.")
    network = {name.removeprefix("model."): value for name, value in model.items()}
    return training["settings"], training["epochs"], network


def load_weights(path: str | Path, network: nn.Module) -> None:
    """Fill `network` alone from the training checkpoint `path`, with averaged weights where it holds them.

    Raises:
        CheckpointError: the file is truncated, foreign, or of another network; nothing has been changed.
    """
    header, tensors = _read(path)
    _training(path, header)
    model = _section(tensors, "model.")
    _check_tensors(path, "network", model, _model_tensors(network))
    averaged = _section(tensors, "ema.")
    model |= {name.replace("ema.", "model.", 1): value for name, value in averaged.items()}
    network.load_state_dict({name.removeprefix("model."): value for name, value in model.items()})


def _model_tensors(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"cannot write a training checkpoint: {', '.join(odd)} in the state dict of "
            f"{type(network).__name__} is no tensor. Keep such state in buffers, "
            f"self.register_buffer(name, torch.tensor(...)), or train without checkpoint=."
        )
    return {f"model.{name}": value for name, value in state.items()}


def _optimizer_tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{kind}.{name}": value
        for name, parameter in network.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _stream_tensors(streams: Streams) -> dict[str, Tensor]:
    return {f"rng.{name}": stream.get_state() for name, stream in streams.items()}


def _part_tensors(prefix: str, part: Part) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in part.tensors().items()}


def _load_optimizer(network: nn.Module, optimizer: Optimizer, moments: dict[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in network.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    position = {name: index for index, name in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        kind, name = _kind_and_name(key)
        state.setdefault(position[name], {})[kind] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {str(path)!r} as a training checkpoint: {error}. It is truncated or another kind "
            f"of file; choose another checkpoint= path, or start over with resume=False."
        ) from error


def _training(path: str | Path, header: dict[str, str]) -> dict:
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file, but no training checkpoint (format "
            f"{header.get('format')!r}, not {FORMAT!r}). Pass the path that train(checkpoint=...) wrote."
        )
    if header.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{str(path)!r} has training format {header.get('format_version')!r}; this version reads "
            f"{FORMAT_VERSION}. Resume with the pmsm that wrote it, or start over with resume=False."
        )
    try:
        training = json.loads(header["training"])
        return {"settings": dict(training["settings"]), "epochs": list(training["epochs"])}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} has a damaged header ({error}). Start over with resume=False."
        ) from error


def _check_settings(path: str | Path, saved: dict, wanted: dict) -> None:
    saved = DEFAULTS | saved
    differing = [
        f"{name}={saved.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"cannot resume from {str(path)!r}: it was trained with other settings ({'; '.join(differing)}). "
            f"Pass the settings of the checkpoint, or start over with resume=False."
        )


def _check_tensors(path: str | Path, what: str, saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    differing = [
        f"{name} is {_described(saved.get(name))} there and {_described(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if _described(saved.get(name)) != _described(wanted.get(name))
    ]
    if differing:
        more = f", and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise CheckpointError(
            f"cannot resume from {str(path)!r}: its {what} differs ({'; '.join(differing[:4])}{more}). "
            f"Build the network and the data loader as for the checkpoint, or start over with resume=False."
        )


def _check_moments(path: str | Path, saved: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    wanted = {}
    for key, value in saved.items():
        kind, name = _kind_and_name(key)
        parameter = parameters.get(name)
        # A moment has the shape of its parameter; AdamW's step count is one number.
        if parameter is not None and parameter.requires_grad:
            wanted[key] = value if kind == "step" and value.dim() == 0 else parameter
    _check_tensors(path, "optimizer", saved, wanted)


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}


def _kind_and_name(key: str) -> tuple[str, str]:
    kind, _, name = key.removeprefix("optimizer.").partition(".")
    return kind, name


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
