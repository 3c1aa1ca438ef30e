"""How a quantized or spiking network reaches a file, and comes back without its author's code.

One safetensors file: the tensors under their names, and in its metadata a JSON text that describes the graph,
the modules and the sites (docs/shipping.md has every key). Nothing is unpickled and no code is read: modules,
functions and methods are named out of tables, and what is not in them is refused.
"""

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pmsm
from pmsm import graph
from pmsm.errors import CheckpointError
from pmsm.graph import Network, serialize
from pmsm.graph.values import DTYPES, record
from pmsm.methods.base import MAX_LEVELS, Quantizer
from pmsm.methods.neuron import Neuron
from pmsm.qann.quantize import refuse_bad_weights
from pmsm.snn import container, parts, sites
from pmsm.snn.header import (
    DTYPE_NAMES,
    FORMAT,
    FORMAT_VERSION,
    ROLES,
    Header,
    input_of,
    is_dense,
    read_header,
    sites_of,
    standing,
)


def save(net: Network, path: str | Path) -> None:
    """Write a quantized or spiking network to one safetensors file that `load` needs no other code to read.

    Args:
        net: from `quantize` or `convert`; left as it is. What acts in training only, such as stochastic
            depth, is kept by name, not as code.
        path: of the file; what stood there stays until the new one is whole.

    Raises:
        CheckpointError: the network holds modules or calls of its author's (all are named), NaN or Inf, or is
            running; or the folder cannot be written.
    """
    header, values = contents(net)
    text = json.dumps(vars(header), allow_nan=False, separators=(",", ":"))
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
    metadata |= {"network": text, "network_sha256": container.digest(text)}
    container.write(path, metadata, values)


def load(path: str | Path) -> Network:
    """The network in a file that `save` wrote, in evaluation mode, on the CPU.

    Its outputs are bit for bit those of the network that was saved, on the same machine and version of torch.
    Memory: the tensors, and at most 512 MiB beside them; every size is compared with the file's length
    before anything is allocated.

    Raises:
        CheckpointError: truncated, changed, of another format or version, or anything that this version does
            not know; the text names it. Nothing in the file is executed.
    """
    try:
        header = read_header(path)
        network, shells = _built(header)
        _fill(network, header, dict(_read(path, header)), shells)
        _check(network, header)
        return network
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot load {str(path)!r}: {error}. Copy it again from where it came, or write it again with "
            f"pmsm.save(net, path)."
        ) from error


# ----------------------------------------------------------------------------------------------------------
# Out
# ----------------------------------------------------------------------------------------------------------


def contents(net: Network) -> tuple[Header, dict[str, Tensor]]:
    """What `save` writes: the description, and the tensors on the CPU.

    Raises:
        CheckpointError: see `save`.
    """
    graph.require(net, "save", CheckpointError)
    refuse_bad_weights(net, CheckpointError)
    spiking = "mode" in net.meta
    if net.meta.get("running"):
        raise CheckpointError("this network is running. Let it end, then save it.")
    modules, nodes = _described(net)
    held = _tensors(net, modules)
    entries, tied = _entries(net, held)
    header = Header(
        kind="snn" if spiking else "qann",
        name=_name(net),
        versions={
            "pmsm": pmsm.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        run={key: net.meta[key] for key in ("mode", "batch_first", "micro_steps") if key in net.meta},
        inputs=[input_of(node) for node in nodes if node["op"] == "placeholder"],
        sites=sites_of(net),
        modules=modules,
        nodes=nodes,
        tensors=entries,
        tied=tied,
    )
    # Clones, because safetensors refuses memory that two names share.
    return header, {name: held[name].detach().cpu().contiguous().clone() for name in entries}


def _name(net: Network) -> str:
    name = str(net.meta.get("name", ""))
    return name if name.isidentifier() else "Network"


def _described(net: Network) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Modules and graph as JSON, or one refusal that names everything in the way."""
    modules, reasons, nodes = {}, [], []
    for path in dict.fromkeys(str(node.target) for node in net.graph.nodes if node.op == "call_module"):
        try:
            modules[serialize.check_path(path, "a module")] = parts.described(net.get_submodule(path), path)
        except CheckpointError as error:
            reasons.append(str(error))
    try:
        nodes = serialize.described(net, parts.WORDS)
    except CheckpointError as error:
        reasons.append(str(error))
    if reasons:
        raise CheckpointError(
            f"cannot save {type(net).__name__}: {'; '.join(reasons)}. A file holds what torch.nn and pmsm "
            f"know and no code of yours: quantize without leaves=, so that the module is traced into "
            f"operators, or write it in operators of torch. Or ship your code beside the weights: "
            f"safetensors.torch.save_file(net.state_dict(), path), and net.load_state_dict there."
        )
    return modules, nodes


def _tensors(net: Network, modules: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that a call reads; what none reads is left out."""
    held: dict[str, Tensor] = {}
    for path in modules:
        for name, tensor in parts.tensors(net.get_submodule(path)).items():
            held[serialize.check_path(f"{path}.{name}", "a tensor")] = tensor
    for node in net.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            tensor = getattr(net.get_submodule(owner), leaf)
            if not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"cannot save: {str(node.target)!r} is {type(tensor).__name__}, no tensor."
                )
            held[serialize.check_path(node.target, "a tensor")] = tensor
    return held


def _entries(net: Network, held: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Per tensor what the body cannot tell, and which names stand for one tensor."""
    entries, tied, first = {}, {}, {}
    for name, tensor in held.items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
            continue
        if tensor.dtype not in container.DTYPES.values() or tensor.layout != torch.strided:
            raise CheckpointError(
                f"cannot save: {name!r} holds {tensor.dtype} {tensor.layout}. Make it dense."
            )
        owner, _, leaf = name.rpartition(".")
        unsaved = leaf in net.get_submodule(owner)._non_persistent_buffers_set
        role = "parameter" if isinstance(tensor, nn.Parameter) else ROLES[1 + unsaved]
        entries[name] = {
            "role": role,
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "strides": list(tensor.stride()) if is_dense(tensor.shape, tensor.stride()) else None,
            "requires_grad": tensor.requires_grad,
            "sha256": container.digest(tensor),
        }
    return entries, tied


# ----------------------------------------------------------------------------------------------------------
# In
# ----------------------------------------------------------------------------------------------------------


def _built(header: Header) -> tuple[Network, dict[str, Tensor]]:
    """The network without values, and its empty tensors by name."""
    entries = header.tensors | {name: header.tensors[other] for name, other in header.tied.items()}
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    _refuse_idle(header)
    root, owned = nn.Module(), set()
    for path, entry in sorted(header.modules.items()):
        module = parts.built(entry, serialize.check_path(path, "a module"), shapes)
        owned |= {f"{path}.{name}" for name in parts.tensors(module)}
        _hang(root, path, module)
    for name in sorted(entries.keys() - owned):
        tensor = torch.empty(shapes[name], dtype=DTYPES[entries[name]["dtype"]], device="meta")
        _hang(root, name, _as_role(tensor, entries[name]))
    unsaved = frozenset(name for name, entry in entries.items() if entry["role"] == ROLES[2])
    network = serialize.rebuilt(header.nodes, root, header.name, parts.WORDS, unsaved)
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    if idle := sorted(entries.keys() - owned - read):
        raise CheckpointError(f"no call in its graph reads {', '.join(map(repr, idle[:4]))}")
    return network, dict(_empty(network, entries))


def _refuse_idle(header: Header) -> None:
    """Before anything is made: as many modules as are called, and no more nodes than are read."""
    serialize.check_count(header.nodes)
    called = {str(node.get("target")) for node in header.nodes if node.get("op") == "call_module"}
    if idle := sorted(header.modules.keys() - called):
        raise CheckpointError(f"no call in its graph uses {', '.join(map(repr, idle[:4]))}")


def _hang(root: nn.Module, path: str, part: Any) -> None:
    """Put a module, parameter or buffer at its path, in plain modules where there are none."""
    *owners, leaf = path.split(".")
    owner = root
    for name in owners:
        if name not in owner._modules:
            _refuse_taken(owner, name, path)
            owner.add_module(name, nn.Module())
        owner: Any = owner._modules[name]
    _refuse_taken(owner, leaf, path)
    if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
        owner.register_buffer(leaf, part)
    else:
        setattr(owner, leaf, part)


def _refuse_taken(owner: nn.Module, name: str, path: str) -> None:
    if hasattr(owner, name):
        raise CheckpointError(f"{path!r} would take the place of {name!r} in {type(owner).__name__}")


def _as_role(tensor: Tensor, entry: dict[str, Any]) -> Tensor:
    return nn.Parameter(tensor, entry["requires_grad"]) if entry["role"] == "parameter" else tensor


def _empty(network: Network, entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that wait for values; each as the file says, or refused by name."""
    waiting = dict(network.named_parameters(remove_duplicate=False))
    waiting |= dict(network.named_buffers(remove_duplicate=False))
    if lacking := sorted(waiting.keys() - entries.keys()):
        raise CheckpointError(f"it lacks the tensors {', '.join(map(repr, lacking[:4]))}")
    for name, tensor in waiting.items():
        entry, dtype = entries[name], DTYPES[entries[name]["dtype"]]
        like = dtype.is_floating_point if tensor.is_floating_point() else dtype == tensor.dtype
        parameter = isinstance(tensor, nn.Parameter) == (entry["role"] == "parameter")
        if tuple(tensor.shape) != tuple(entry["shape"]) or not like or not parameter:
            raise CheckpointError(
                f"the tensor {name!r} is a {entry['role']} {entry['dtype']}{entry['shape']}, and its module "
                f"takes {list(tensor.shape)}"
            )
        yield name, tensor


def _read(path: str | Path, header: Header) -> Iterator[tuple[str, Tensor]]:
    """The tensors with their values, compared with their hashes, in the memory layout that they had."""
    for name, tensor in container.read_tensors(path, header.tensors):
        entry = header.tensors[name]
        if container.digest(tensor) != entry["sha256"]:
            raise CheckpointError(f"the tensor {name!r} was changed: its hash is not the one in the header")
        if entry["strides"] is not None and tuple(entry["strides"]) != tensor.stride():
            shaped = torch.empty_strided(tensor.shape, entry["strides"], dtype=tensor.dtype, device="cpu")
            tensor = shaped.copy_(tensor)
        yield name, _as_role(tensor, entry)


def _fill(network: Network, header: Header, values: dict[str, Tensor], shells: dict[str, Tensor]) -> None:
    """Give every name its tensor, tied names the same one; then quantizers check and read their bounds."""
    for name in shells:
        owner_path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(owner_path)
        held: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        held[leaf] = values[header.tied.get(name, name)]
    for quantizer in (module for module in network.modules() if isinstance(module, Quantizer)):
        try:
            quantizer.load_state_dict(quantizer.state_dict())
        except RuntimeError as error:  # torch's, for tensors that a module refuses
            raise CheckpointError(f"the site {quantizer.site.name!r} refuses its tensors: {error}") from error


def _check(network: Network, header: Header) -> None:
    """What the values decide: finite weights, positive thresholds, sites as the header tells them."""
    refuse_bad_weights(network, CheckpointError)
    network.meta.update(_run(header), name=header.name)
    kind = Neuron if header.kind == "snn" else Quantizer
    found = list(standing(network))
    if not found or not all(isinstance(site, kind) for _, site in found):
        raise CheckpointError(f"it calls itself a {header.kind}, and its sites are of another kind")
    for (node, site), entry in zip(found, header.sites, strict=False):
        if isinstance(site, Neuron):
            if not bool((site.threshold > 0).all()):
                raise CheckpointError(f"the neuron {str(node.target)!r} has a threshold that is not positive")
            if isinstance(entry, dict) and entry.get("method") is not None:
                node.meta["method"] = sites.built_method(entry["method"], f"the site {str(node.target)!r}")
    if sites_of(network) != header.sites:
        raise CheckpointError("its list of sites is not that of its graph")
    if [input_of(node) for node in header.nodes if node["op"] == "placeholder"] != header.inputs:
        raise CheckpointError("its list of inputs is not that of its graph")


def _run(header: Header) -> dict[str, Any]:
    """How an SNN runs, checked; {} for a QANN."""
    if header.kind == "qann":
        return record(header.run, "'run'")
    unrolled = {"micro_steps": int} if "micro_steps" in header.run else {}
    run = record(header.run, "'run'", mode=str, batch_first=bool, **unrolled)
    if run["mode"] not in ("integrate", "tracking") or not 1 <= run.get("micro_steps", 1) <= MAX_LEVELS:
        raise CheckpointError(f"it runs in the mode {run['mode'][:40]!r}, or in steps that no network takes")
    return run
