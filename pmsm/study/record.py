"""What the record of a run holds: the one form that the report, the summary and the comparison read."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pmsm.errors import PMSMError

FORMAT, VERSION = "pmsm-run", 1
_VERIFY = {"max_difference": float, "codes": int, "different": int}
_SITE = {
    "name": str, "shape": [int], "scale": float, "quant_min": int, "quant_max": int, "entropy_bits": float,
    "effective_bits": float, "max_bits": float, "histogram?": {int: float}, "silent?": float,
    "saturated?": float,
}  # fmt: skip
_OPERATOR = {"name": str, "kind": str, "fate": str, "macs?": int}
_COST = {
    "name": str, "kind": str, "reads": str, "synops": float, "energy_nj": float, "float_nj": float,
    "int8_nj": float,
}  # fmt: skip
_BESIDE = {"name": str, "technology": str, "energy_nj": float, "ratio": float, "break_even": float}
_ENERGY = {
    "timesteps": int, "technology": str, "convention": str, "samples": int, "energy_nj": float,
    "half_width_nj": float, "synops": float, "operators?": [_COST], "beside?": [_BESIDE],
}  # fmt: skip
_LAYER = {"name": str, "neurons": int, "counts": [[int]]}
_METHOD = {
    "name": str, "method": str, "qann_accuracy": float, "accuracy": [float], "spikes_per_neuron": [float],
    "epochs": int, "seconds": float, "verify?": _VERIFY, "sites?": [_SITE], "energy?": [_ENERGY],
}  # fmt: skip
# What a record must hold. A key that ends in "?" may be missing or None; a number may be None, read as NaN.
RECORD = {
    "title": str,
    "data": {"name": str, "train": int, "test": int, "shape": [int], "classes": int},
    "network": {"name": str, "parameters": int, "sites": int, "neurons": int},
    "float": {"accuracy": float, "epochs": int, "seconds": float},
    "timesteps": [int],
    "methods": [_METHOD],
    "operators?": [_OPERATOR],
    "raster?": {"timesteps": int, "sample": str, "layers": [_LAYER]},
    "environment": {str: object},
    "command": str,
    "commit?": str,
    "date?": str,
}
_KINDS = {str: "a text", int: "a whole number", float: "a number"}


def read_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A checked copy of a run record in which every optional key exists, None where the record has none.

    Raises:
        PMSMError: the text names the first key that is missing or holds something else.
    """
    if not isinstance(record, Mapping):
        raise malformed(f"it must be an object, got {type(record).__name__}")
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if record.get(key) != expected:
            raise malformed(f"{key!r} must be {expected!r}, got {record.get(key)!r}")
    checked = _read(record, RECORD, "")
    steps = checked["timesteps"]
    if not steps or steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
        raise malformed(f"'timesteps' must be positive and ascending, got {steps}")
    if not checked["methods"]:
        raise malformed("'methods' is empty")
    for i, method in enumerate(checked["methods"]):
        for key in ("accuracy", "spikes_per_neuron"):
            found = len(method[key])
            if found != len(steps):
                raise malformed(f"'methods[{i}].{key}' holds {found} values for {len(steps)} timesteps")
    return checked


def _read(value: Any, kind: Any, where: str) -> Any:
    if isinstance(kind, dict):
        if not isinstance(value, Mapping):
            raise malformed(f"{where!r} must be an object, got {type(value).__name__}")
        if int in kind:
            return {
                _code(name, where): _read(item, kind[int], f"{where}.{name}") for name, item in value.items()
            }
        if str in kind:
            return {str(name): _read(item, kind[str], f"{where}.{name}") for name, item in value.items()}
        return {key.removesuffix("?"): _read_key(value, key, inner, where) for key, inner in kind.items()}
    if isinstance(kind, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise malformed(f"{where!r} must be a list, got {type(value).__name__}")
        return [_read(item, kind[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is float and value is None:
        return math.nan
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind in (int, float) and isinstance(value, bool)):
        raise malformed(f"{where!r} must be {_KINDS[kind]}, got {value!r}")
    return value


def _read_key(record: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    name = key.removesuffix("?")
    place = f"{where}.{name}" if where else name
    if key.endswith("?") and record.get(name) is None:
        return None
    if name not in record:
        raise malformed(f"{place!r} is missing")
    return _read(record[name], kind, place)


def _code(name: Any, where: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise malformed(f"{where!r} has the key {name!r}, which is no spike count") from None


def malformed(what: str) -> PMSMError:
    """The refusal of a record that lacks or garbles `what`."""
    return PMSMError(f"cannot read the run record: {what}. Write it anew: pmsm demo.")
