"""What a site is in a file: its method by name, with its settings, and where in the network it stands."""

import types
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from pmsm.errors import CheckpointError
from pmsm.graph.values import decoded, encoded, record
from pmsm.methods import METHODS
from pmsm.methods.base import Method, Quantizer, Site


def described_method(method: Any) -> dict[str, Any]:
    """A method by its name in `METHODS`, with its settings.

    Raises:
        CheckpointError: a method that is not in `METHODS`.
    """
    name = next((name for name, kind in METHODS.items() if type(method) is kind), None)
    if name is None:
        raise CheckpointError(f"the method {method!r} is not in pmsm.METHODS, and no file can hold its code")
    return {"name": name, "settings": {f.name: encoded(getattr(method, f.name)) for f in fields(method)}}


def built_method(entry: Any, where: str) -> Method:
    """The method of an entry; every setting is checked against its type, then by the method itself."""
    record(entry, f"the method of {where}", name=str, settings=dict)
    if entry["name"] not in METHODS:
        raise CheckpointError(
            f"{where} has the method {entry['name'][:40]!r}, which this version of pmsm does not know"
        )
    return _dataclass(METHODS[entry["name"]], entry["settings"], f"the method of {where}")


def described_site(quantizer: Quantizer, path: str) -> dict[str, Any]:
    """A quantizer as JSON: its method and where it stands; the tensors are kept elsewhere."""
    site: Any = quantizer.site
    method: Any = getattr(quantizer, "method", None)
    return {
        "class": "Quantizer",
        "method": described_method(method),
        "site": {field.name: encoded(getattr(site, field.name)) for field in fields(site)},
    }


def built_site(entry: Any, path: str, _: Any = None) -> Quantizer:
    """The quantizer of an entry, not yet filled.

    Raises:
        CheckpointError: the entry is damaged, or its method unknown.
    """
    record(entry, f"module {path!r}", **{"class": str, "method": dict, "site": dict})
    site = _dataclass(Site, entry["site"], f"the site {path!r}")
    return built_method(entry["method"], f"module {path!r}").quantizer(site)


def _dataclass(kind: Any, entry: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    record(entry, where, **dict.fromkeys(names, object))
    settings = {name: decoded(value, where) for name, value in entry.items()}
    for name, value in settings.items():
        if not _is_of(value, hints[name]):
            raise CheckpointError(f"{where} has {name}={str(value)[:60]!r}, not {hints[name]}")
    return kind(**settings)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as settings are annotated: plain types, unions and tuples of them."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, part) for part in arguments)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(wanted) and all(map(_is_of, value, wanted))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if isinstance(hint, type) else value is None and hint is None
