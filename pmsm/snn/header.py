"""What a file says of its network, and whether that agrees with itself and with the table of its tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pmsm
from pmsm import graph
from pmsm.errors import CheckpointError
from pmsm.graph import Network, serialize
from pmsm.graph.values import DTYPES, is_plain, record
from pmsm.graph.values import sizes as shape_in
from pmsm.methods import METHODS
from pmsm.methods.base import Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.snn import container, sites

FORMAT, FORMAT_VERSION = "pmsm-network", "1"
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ROLES = ("parameter", "buffer", "unsaved buffer")
"""The last is a buffer that is no part of the state dict, such as a table of indices."""


@dataclass(frozen=True)
class Header:
    """What a file says of its network.

    Args:
        kind: "qann" or "snn".
        name: class of the network that was quantized.
        versions: of pmsm, torch and Python that wrote it.
        run: how an SNN runs: mode, batch_first, micro_steps; empty for a QANN.
        inputs: name, shape and dtype of each input of the example.
        sites: name, method and codes of each site, in the order of execution.
        modules: path -> class and settings of every module that is called.
        nodes: the graph, see `graph.serialize`.
        tensors: name -> role, dtype, shape, strides, requires_grad, sha256.
        tied: name -> name of the tensor that it is the same as.
    """

    kind: str
    name: str
    versions: dict[str, str]
    run: dict[str, Any]
    inputs: list[dict[str, Any]]
    sites: list[dict[str, Any]]
    modules: dict[str, Any]
    nodes: list[dict[str, Any]]
    tensors: dict[str, dict[str, Any]]
    tied: dict[str, str]


def read_header(path: str | Path) -> Header:
    """What a file says of its network, its keys and its own hash checked; no tensor is read.

    Raises:
        CheckpointError: see `load`.
    """
    metadata, table = container.read_header(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"its format is {str(metadata.get('format'))[:40]!r}, not {FORMAT!r}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"it has version {str(metadata.get('format_version'))[:40]!r} of the format, and pmsm "
            f"{pmsm.__version__} reads {FORMAT_VERSION}; read it with the pmsm that wrote it"
        )
    record(
        metadata,
        "its metadata",
        **dict.fromkeys(("format", "format_version", "network", "network_sha256"), str),
    )
    if container.digest(metadata["network"]) != metadata["network_sha256"]:
        raise CheckpointError("its description was changed: 'network_sha256' is the hash of another text")
    entries = container.parsed(metadata["network"], "the description")
    kinds = {"kind": str, "name": str} | dict.fromkeys(("inputs", "sites", "nodes"), list)
    header = Header(**record(entries, "the description", **dict.fromkeys(_OBJECTS, dict), **kinds))
    _check_header(header, table)
    return header


_OBJECTS = ("versions", "run", "modules", "tensors", "tied")


def _check_header(header: Header, table: dict[str, container.Stored]) -> None:
    """Compare what the description says of the tensors with the table of the body."""
    for key, value in header.versions.items():
        if not isinstance(value, str) or not is_plain(key + value):
            raise CheckpointError(f"the version of {key[:40]!r} is no plain text")
    if not all(isinstance(node, dict) for node in header.nodes):
        raise CheckpointError("its graph holds something that is no object")
    if header.kind not in ("qann", "snn") or not header.name.isidentifier():
        raise CheckpointError(f"it is a {header.kind[:40]!r} called {header.name[:40]!r}")
    missing, extra = (
        sorted(header.tensors.keys() - table.keys()),
        sorted(table.keys() - header.tensors.keys()),
    )
    if missing or extra:
        raise CheckpointError(f"it lacks the tensors {missing[:4]} and holds {extra[:4]} beside them")
    _check_tensors(header, table)
    for name, other in header.tied.items():
        serialize.check_path(name, "a tied tensor")
        if name in header.tensors or not isinstance(other, str) or other not in header.tensors:
            raise CheckpointError(f"{name!r} is tied to {str(other)[:80]!r}, which is no tensor of the file")


def _check_tensors(header: Header, table: dict[str, container.Stored]) -> None:
    for name, entry in header.tensors.items():
        where = f"the tensor {serialize.check_path(name, 'a tensor')!r}"
        record(entry, where, role=str, dtype=str, shape=list, strides=(list, type(None)), requires_grad=bool,
               sha256=str)  # fmt: skip
        stored, shape = table[name], shape_in(entry["shape"], where)
        if entry["role"] not in ROLES or DTYPES.get(entry["dtype"]) != stored.dtype or shape != stored.shape:
            raise CheckpointError(
                f"{where} is {DTYPE_NAMES[stored.dtype]}{list(stored.shape)} in the body, not {entry}"
            )
        if entry["requires_grad"] and not (stored.dtype.is_floating_point and entry["role"] == "parameter"):
            raise CheckpointError(f"{where} cannot have a gradient")
        if entry["strides"] is not None and not is_dense(shape, shape_in(entry["strides"], where)):
            raise CheckpointError(f"{where} has the strides {entry['strides']}, which leave holes")


def sites_of(net: Network) -> list[dict[str, Any]]:
    """Method and codes of each site; a neuron knows its method by the note that `convert` left, and needs it
    no more: one that is not in `METHODS` is null.
    """
    found = []
    for node, site in standing(net):
        method = site.method if isinstance(site, Quantizer) else node.meta.get("method")
        known = isinstance(site, Quantizer) or type(method) in METHODS.values()
        entry = sites.described_method(method) if known else None
        found.append({"name": str(node.target), "method": entry, "codes": [site.quant_min, site.quant_max]})
    return found


def standing(net: Network) -> Iterator[tuple[graph.Node, Any]]:
    """The quantizers or neurons that stand in `net`, with their nodes, in its order."""
    for node in net.graph.nodes:
        if graph.is_module(net, node, (Quantizer, Neuron)):
            yield node, graph.module_of(net, node)


def input_of(node: dict[str, Any]) -> dict[str, Any]:
    """Name, shape and type of one input, as the header tells them."""
    made = node["makes"] if isinstance(node["makes"], dict) else {}
    return {"name": node["target"], "shape": made.get("shape"), "dtype": made.get("dtype")}


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements fill memory without a hole and without sharing, in whatever order."""
    if len(shape) != len(strides) or 0 in shape:
        return False
    size = 1
    for stride, length in sorted((t, n) for t, n in zip(strides, shape, strict=True) if n > 1):
        if stride != size:
            return False
        size *= length
    return all(stride <= size for stride in strides)
