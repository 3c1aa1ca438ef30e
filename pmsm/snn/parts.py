"""What a module is in a file: its class, by a name out of a table, and the settings that it is made from.

Read back, a module is made on the meta device: settings that ask for terabytes cost nothing. Its tensors are
put in afterwards, at the shapes that it expects.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmsm import graph
from pmsm.errors import CheckpointError
from pmsm.graph.values import decoded, encoded, is_plain, record
from pmsm.graph.vocabulary import Vocabulary, public_name
from pmsm.methods.base import MAX_LEVELS, Quantizer
from pmsm.methods.neuron import Neuron, TrackingNeuron
from pmsm.methods.unary import UnaryNeuron
from pmsm.qann.units import WHOLE_LAYERS, InputGrid
from pmsm.snn.convert import RULES
from pmsm.snn.sites import built_site, described_site
from pmsm.snn.temporal import Static, TensorMethod
from pmsm.snn.unroll import Collapse, OncePerTimestep, Repeat

_KINDS = (*RULES, *graph.ACTIVATIONS, *graph.WEIGHTED, *graph.BATCHNORMS, *graph.MAXPOOLS, *graph.MOVES)
CLASSES: dict[str, type[nn.Module]] = {
    **{
        f"torch.nn.{kind.__name__}": kind
        for kind in _KINDS
        if isinstance(kind, type) and getattr(nn, kind.__name__, None) is kind
    },
    **{kind.__name__: kind for kind in (Neuron, TrackingNeuron, Repeat, Collapse, InputGrid, *WHOLE_LAYERS)},
}
"""Name -> class whose constructor's parameters are attributes of its instances; each rule brings its type."""
_NAMES = {kind: name for name, kind in CLASSES.items()}

WORDS = Vocabulary.of(kind for kind in RULES if not isinstance(kind, type))
"""What a graph in a file may call; each rule brings its function or method."""

Shapes = Mapping[str, tuple[int, ...]]


class Absent(nn.Module):
    """In place of what acted in training only, whose code is not in the file; loaded networks keep its name.

    Args:
        kind: the class that it was.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse: evaluation never comes here.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"a {self.kind} acted here in training, and the file that this network was loaded from does not "
            f"hold its code. Train the network that was saved; or put one in its place, for each "
            f"m in net.modules() that is a pmsm.graph.TrainingOnly: m.module = torch.nn.Identity()."
        )

    def extra_repr(self) -> str:
        """What the module was."""
        return self.kind


def described(module: nn.Module, path: str) -> dict[str, Any]:
    """A module as JSON, checked by making another from it.

    Raises:
        CheckpointError: a class that no file can name, hooks, or settings that do not make the same module.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise CheckpointError(f"{path!r} has forward hooks, and no file can hold their code")
    entry = _described(module, path)
    state = {name: tuple(tensor.shape) for name, tensor in tensors(module).items()}
    try:
        again = built(entry, path, {f"{path}.{name}": shape for name, shape in state.items()})
    except CheckpointError as error:
        raise CheckpointError(
            f"{path!r} ({type(module).__name__}) has changed since it was made: {error}"
        ) from error
    if {name: tuple(tensor.shape) for name, tensor in tensors(again).items()} != state:
        raise CheckpointError(
            f"{path!r} ({type(module).__name__}) holds the tensors {', '.join(state) or 'none'}, which are "
            f"not those of a new {entry['class']}"
        )
    return entry


def built(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    """The module of an entry, without values, on the meta device, in evaluation mode.

    Args:
        shapes: name of every tensor in the file -> its shape.

    Raises:
        CheckpointError: an unknown class, or settings that do not make such a module.
    """
    where = f"module {path!r}"
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
        raise CheckpointError(f"{where} has no class")
    make = _MAKERS.get(entry["class"], _make_plain)
    try:
        with torch.device("meta"):
            module = make(entry, path, shapes)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor has against settings that nobody would write
        raise CheckpointError(
            f"{where} cannot be made from its settings: {type(error).__name__}: {error}"
        ) from error
    if _described(module, path) != entry:
        raise CheckpointError(f"{where} has settings that {entry['class']} does not keep")
    if isinstance(module, Neuron):
        _check_neuron(module, where)
    if isinstance(module, Repeat | UnaryNeuron) and not _whole(module.micro_steps, 1):
        raise CheckpointError(f"{where} has {module.micro_steps!r} micro-steps")
    return module.eval()


def _check_neuron(neuron: Neuron, where: str) -> None:
    low, high = neuron.quant_min, neuron.quant_max
    if not (_whole(low, -MAX_LEVELS) and _whole(high, 1) and low <= 0 and type(neuron.cancel) is bool):
        raise CheckpointError(f"{where} has the codes {low!r}..{high!r}, which no neuron sends")


def _whole(number: Any, least: int) -> bool:
    return type(number) is int and least <= number <= MAX_LEVELS


def class_name(kind: type) -> str | None:
    """The name of a class in a file; where torch inherits a forward pass, that of the base."""
    bases = (base for base in kind.__mro__ if base in _NAMES and base.forward is kind.forward)
    return _NAMES.get(next(bases, kind)) if kind.__module__.startswith("torch.nn.") else _NAMES.get(kind)


# ----------------------------------------------------------------------------------------------------------
# One entry per class
# ----------------------------------------------------------------------------------------------------------


def _described(module: nn.Module, path: str) -> dict[str, Any]:
    if isinstance(module, Quantizer):
        return described_site(module, path)
    if isinstance(module, graph.TrainingOnly):
        held = module.module
        kind = held.kind if isinstance(held, Absent) else f"{type(held).__module__}.{type(held).__qualname__}"
        return {"class": "TrainingOnly", "held": kind}
    if type(module) is Static:
        return {
            "class": "Static",
            "operator": _described_operator(module.operator, path),
            "varies": _listed(module.varies),
        }
    if type(module) is OncePerTimestep:
        return {
            "class": "OncePerTimestep",
            "static": _described(module.static, f"{path}.static"),
            "micro_steps": module.micro_steps,
        }
    if type(module) is UnaryNeuron:
        neuron = _settings(module, Neuron)
        return {"class": "UnaryNeuron", "settings": neuron, "micro_steps": module.micro_steps}
    name = class_name(type(module))
    if name is None:
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        raise CheckpointError(f"no file can hold the code of {path!r} ({kind})")
    return {"class": name, "settings": _settings(module, CLASSES[name])}


def _settings(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The constructor's parameters, read off the module; of a tensor only that there is one."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        bare = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name.startswith("_")
        if bare or name in ("self", "device", "dtype") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if name == "bias":
            found[name] = value is not None
        else:
            found[name] = {"tensor": name} if isinstance(value, Tensor) else encoded(value)
    return found


def _make_plain(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    record(entry, f"module {path!r}", **{"class": str, "settings": dict})
    if entry["class"] not in CLASSES:
        raise CheckpointError(
            f"module {path!r} is a {entry['class'][:80]!r}, which this version of pmsm does not know"
        )
    return CLASSES[entry["class"]](**_read_settings(entry["settings"], path, shapes))


def _read_settings(settings: dict[str, Any], path: str, shapes: Shapes) -> dict[str, Any]:
    found = {}
    for name, value in settings.items():
        if value == {"tensor": name}:
            if f"{path}.{name}" not in shapes:
                raise CheckpointError(f"the file lacks the tensor {f'{path}.{name}'!r}")
            found[name] = torch.empty(shapes[f"{path}.{name}"])
        else:
            found[name] = decoded(value, f"module {path!r}")
    return found


def _make_unary(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    record(entry, f"module {path!r}", **{"class": str, "settings": dict, "micro_steps": int})
    return UnaryNeuron(Neuron(**_read_settings(entry["settings"], path, shapes)), entry["micro_steps"])


def _make_training_only(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    record(entry, f"module {path!r}", **{"class": str, "held": str})
    if not is_plain(entry["held"]):
        raise CheckpointError(f"module {path!r} held {entry['held'][:80]!r}, which is no name of a class")
    return graph.TrainingOnly(Absent(entry["held"]))


def _described_operator(operator: Any, path: str) -> dict[str, Any]:
    """What a static map runs: a module, a function or a tensor method."""
    if isinstance(operator, nn.Module):
        return _described(operator, f"{path}.operator")
    if isinstance(operator, TensorMethod) and operator.__name__ in WORDS.methods:
        return {"method": operator.__name__}
    name = public_name(operator)
    if name not in WORDS.functions or operator is getattr:
        raise CheckpointError(f"no file can hold the call of {operator!r} at {path!r}")
    return {"function": name}


def _make_static(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    record(entry, f"module {path!r}", **{"class": str, "operator": dict, "varies": (bool, list, dict)})
    operator = entry["operator"]
    if operator.keys() == {"method"} and operator["method"] in WORDS.methods:
        return Static(TensorMethod(operator["method"]), _varies(entry["varies"], path))
    if operator.keys() == {"function"} and operator["function"] in WORDS.functions:
        return Static(WORDS.functions[operator["function"]], _varies(entry["varies"], path))
    return Static(built(operator, f"{path}.operator", shapes), _varies(entry["varies"], path))


def _make_once(entry: Any, path: str, shapes: Shapes) -> nn.Module:
    record(entry, f"module {path!r}", **{"class": str, "static": dict, "micro_steps": int})
    static = built(entry["static"], f"{path}.static", shapes)
    if not isinstance(static, Static):
        raise CheckpointError(f"module {path!r} runs something once per timestep that is no static map")
    return OncePerTimestep(static, entry["micro_steps"])


def _listed(varies: Any) -> Any:
    if isinstance(varies, dict):
        return {key: _listed(part) for key, part in varies.items()}
    return [_listed(part) for part in varies] if isinstance(varies, tuple) else varies


def _varies(entry: Any, path: str, depth: int = 0) -> Any:
    """Which parts of the arguments are signals, see `Static`."""
    if isinstance(entry, bool):
        return entry
    if isinstance(entry, list) and depth < 16:
        return tuple(_varies(part, path, depth + 1) for part in entry)
    if isinstance(entry, dict) and depth < 16:
        return {key: _varies(part, path, depth + 1) for key, part in entry.items()}
    raise CheckpointError(f"module {path!r} has arguments that are neither signals nor none")


_MAKERS: dict[str, Any] = {
    "Quantizer": built_site,
    "TrainingOnly": _make_training_only,
    "Static": _make_static,
    "OncePerTimestep": _make_once,
    "UnaryNeuron": _make_unary,
}
"""Classes with a form of their own; every other is made by its constructor from its settings."""


def owned(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and those it is made of, not those that others hung into it; each with the prefix of its
    tensors' names.
    """
    if isinstance(module, Quantizer):
        yield from ((f"{prefix}{name}{'.' * bool(name)}", part) for name, part in module.named_modules())
        return
    yield prefix, module
    if type(module) is OncePerTimestep:
        yield from owned(module.static, f"{prefix}static.")
    if type(module) is Static and isinstance(module.operator, nn.Module):
        yield from owned(module.operator, f"{prefix}operator.")


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of all that a module is made of, by their names in it."""
    return {
        f"{prefix}{name}": tensor
        for prefix, part in owned(module)
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }
