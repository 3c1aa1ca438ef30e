"""Python values as JSON and back: the constants in a graph's calls, checked on the way in.

JSON's null, true, numbers, strings and arrays are None, bool, int, float, str and list. Everything else is an
object with one key that says what it is: {"node": "conv1"}, {"tuple": [...]}, {"dict": [[key, value], ...]},
{"slice": [start, stop, step]}, {"size": [...]}, {"dtype": "float32"}, {"device": "cpu"}, {"float": "inf"},
{"memory_format": "channels_last"}, {"ellipsis": true}.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from pmsm.errors import CheckpointError

MAX_DEPTH = 16
"""How deep values may lie in each other."""
MAX_INT = 2**63 - 1
MAX_TEXT = 10_000
"""Characters of a string."""

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MEMORY_FORMAT_NAMES = {layout: name for name, layout in MEMORY_FORMATS.items()}
_DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


def encoded(value: Any) -> Any:
    """`value` as JSON.

    Raises:
        CheckpointError: a value of another kind, with its type.
    """
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str and len(value) <= MAX_TEXT:
        return str(value)
    if type(value) is int and abs(value) <= MAX_INT:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if type(value) is tuple:
        return {"tuple": [encoded(part) for part in value]}
    if isinstance(value, list):
        return [encoded(part) for part in value]
    if isinstance(value, dict):
        return {"dict": [[encoded(key), encoded(part)] for key, part in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encoded(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype) and value in _DTYPE_NAMES:
        return {"dtype": _DTYPE_NAMES[value]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _MEMORY_FORMAT_NAMES[value]}
    raise CheckpointError(f"a value of type {type(value).__name__}, {str(value)[:60]!r}, has no form in JSON")


def decoded(entry: Any, where: str, nodes: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """The value that `encoded` wrote.

    Args:
        where: what to call the place in a refusal.
        nodes: name -> node, the nodes that stand in front; none may be named otherwise.

    Raises:
        CheckpointError: anything that `encoded` does not write.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where} holds values nested deeper than {MAX_DEPTH}")
    if entry is None or isinstance(entry, bool | float):
        return entry
    if isinstance(entry, int) and abs(entry) <= MAX_INT:
        return entry
    if isinstance(entry, str) and len(entry) <= MAX_TEXT:
        return entry
    if isinstance(entry, list):
        return [decoded(part, where, nodes, depth + 1) for part in entry]
    if not isinstance(entry, dict) or len(entry) != 1:
        raise CheckpointError(f"{where} holds {_shown(entry)}, which is no value")
    ((kind, content),) = entry.items()
    if kind == "node":
        if nodes is None or not isinstance(content, str) or content not in nodes:
            raise CheckpointError(f"{where} reads {_shown(content)}, which is no node in front of it")
        return nodes[content]
    if kind not in _DECODERS:
        raise CheckpointError(f"{where} holds a value of unknown kind {_shown(kind)}")
    try:
        return _DECODERS[kind](content, lambda part: decoded(part, where, nodes, depth + 1))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{where} holds no sound {kind}: {_shown(content)}") from error


def record(entry: Any, where: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """`entry`, an object with exactly these keys, each of its type; a bool is no int.

    Raises:
        CheckpointError: a missing or extra key, or a value of another type, by name.
    """
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is {_shown(entry)}, not an object")
    missing, extra = sorted(kinds.keys() - entry.keys()), sorted(entry.keys() - kinds.keys())
    if missing or extra:
        lacks = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        holds = [f"holds the unknown {', '.join(_shown(key) for key in extra)}"] if extra else []
        raise CheckpointError(f"{where} {' and '.join(lacks + holds)}")
    for key, kind in kinds.items():
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(entry[key], wanted) or (
            isinstance(entry[key], bool) and not {bool, object} & {*wanted}
        ):
            names = " or ".join(k.__name__ for k in wanted)
            raise CheckpointError(f"{key!r} of {where} is {_shown(entry[key])}, not {names}")
    return entry


def sizes(entry: Any, where: str) -> tuple[int, ...]:
    """A shape: a list of at most 16 whole numbers from 0 to `MAX_INT`."""
    whole = isinstance(entry, list) and len(entry) <= 16 and all(type(size) is int for size in entry)
    if not whole or not all(0 <= size <= MAX_INT for size in entry):
        raise CheckpointError(f"{where} has {_shown(entry)} for a shape")
    return tuple(entry)


def is_plain(text: str) -> bool:
    """Whether a text may be shown: a short line without anything that a terminal would obey."""
    return len(text) <= 200 and text.isprintable() and "`" not in text


def _float(content: Any, _: Callable[[Any], Any]) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]


def _size(content: Any, _: Callable[[Any], Any]) -> torch.Size:
    return torch.Size(sizes(content, "a size"))


def _tuple(content: Any, decode: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(decode(part) for part in _listed(content))


def _dict(content: Any, decode: Callable[[Any], Any]) -> dict[Any, Any]:
    pairs = [(key, decode(part)) for key, part in _listed(content)]
    found = dict(pairs)
    if len(found) < len(pairs) or not all(type(key) in (str, int) for key in found):
        raise ValueError("a key twice, or no key")
    return found


def _slice(content: Any, decode: Callable[[Any], Any]) -> slice:
    start, stop, step = _listed(content)
    return slice(decode(start), decode(stop), decode(step))


def _ellipsis(content: Any, _: Callable[[Any], Any]) -> Any:
    if content is not True:
        raise ValueError(content)
    return Ellipsis


def _device(content: Any, _: Callable[[Any], Any]) -> torch.device:
    kind, _, index = content.partition(":")
    if kind not in _DEVICES or (index and not (index.isdecimal() and len(index) < 3)):
        raise ValueError(content)
    return torch.device(content)


def _listed(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError(content)
    return content


_DECODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "float": _float,
    "tuple": _tuple,
    "size": _size,
    "dict": _dict,
    "slice": _slice,
    "ellipsis": _ellipsis,
    "dtype": lambda content, _: DTYPES[content],
    "device": _device,
    "memory_format": lambda content, _: MEMORY_FORMATS[content],
}


def _shown(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else f"{text[:77]}..."
