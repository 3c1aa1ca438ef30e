"""A traced graph as JSON and back: names out of a vocabulary, values checked, no code in the file.

Torch.fx writes Python for a graph from the names in it, so every name is checked before it gets there: what
comes out is calls of functions in the vocabulary on values that `values.decoded` knows.
"""

import keyword
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from pmsm.errors import CheckpointError
from pmsm.graph.decompose import additive_mask, causal_mask
from pmsm.graph.network import Network, Node, finish
from pmsm.graph.values import DTYPES, decoded, encoded, record, sizes
from pmsm.graph.vocabulary import Vocabulary, public_name

MAX_NODES = 10_000
"""Calls of a graph; the largest network of the zoo makes 1,896."""
_OPS = ("placeholder", "get_attr", "call_module", "call_method", "call_function", "output")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ +:-]*")
_WRAPPED = (additive_mask, causal_mask, len)
"""Functions that would run, not be recorded, when a pickled graph is traced anew."""
_EMPTY = fx.Graph()
_EMPTY.output(None)
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), _EMPTY)))
"""Attributes of every network, which no module or tensor may take the place of."""


def described(network: Network, words: Vocabulary) -> list[dict[str, Any]]:
    """The nodes of `network` in order, each as JSON.

    Keys of a node: name, op, target, args, kwargs; `module`, the path of the user's module that holds the
    call; `makes`, shape and dtype of its result for the example, or null.

    Raises:
        CheckpointError: calls that the vocabulary has no name for, all of them, an argument that has no form
            in JSON, or too many nodes.
    """
    check_count(list(network.graph.nodes))
    unknown = {_called(node): node.name for node in network.graph.nodes if _target(node, words) is None}
    if unknown:
        calls = ", ".join(f"{call} at {name!r}" for call, name in unknown.items())
        raise CheckpointError(f"no file can hold the calls {calls}")
    return [_described(node, words) for node in network.graph.nodes]


def rebuilt(
    entries: list[Any], root: nn.Module, name: str, words: Vocabulary, unsaved: frozenset[str] = frozenset()
) -> Network:
    """The network of the nodes that `described` wrote, over the modules and tensors of `root`.

    Args:
        root: holds every module that is called and every tensor that is read, at its path.
        unsaved: names of buffers that are no part of the state dict.

    Raises:
        CheckpointError: an unknown name, key or value, a node that reads one behind it, two nodes of a name.
    """
    check_count(entries)
    graph, nodes = fx.Graph(), {}
    for position, entry in enumerate(entries):
        node = _rebuilt(graph, entry, f"node {position}", nodes, words, root)
        nodes[node.name] = node
    _check_ends(graph)
    try:
        network = finish(fx.GraphModule(root, graph, name))
    except Exception as error:  # whatever torch.fx and Python's parser have against the graph
        raise CheckpointError(f"torch.fx refuses the graph: {type(error).__name__}: {error}") from error
    for path in unsaved:
        owner, _, leaf = path.rpartition(".")
        network.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
    return network.eval()


def check_count(entries: list[Any]) -> None:
    """Refuse a graph whose nodes would take too much memory.

    Raises:
        CheckpointError: more than `MAX_NODES`.
    """
    if len(entries) > MAX_NODES:
        raise CheckpointError(f"the graph has {len(entries)} nodes, and a file holds at most {MAX_NODES}")


def check_path(path: Any, where: str) -> str:
    """A dotted path that no attribute of a module stands in the way of.

    Raises:
        CheckpointError: another kind of name.
    """
    parts = path.split(".") if isinstance(path, str) and len(path) < 1000 else [""]
    for part in parts:
        if not _PART.fullmatch(part) or part in _TAKEN or part.startswith("__"):
            raise CheckpointError(f"{where} has {str(path)[:80]!r} for a name, and no module can have it")
    return str(path)


def _check_ends(graph: fx.Graph) -> None:
    ops = [node.op for node in graph.nodes]
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if ops.count("output") != 1 or ops[-1] != "output" or not inputs:
        raise CheckpointError("the graph needs inputs, and one output at its end")
    if len(set(inputs)) < len(inputs) or "self" in inputs:
        raise CheckpointError(f"the graph has inputs {', '.join(inputs)[:80]}, two of one name")


def _called(node: Node) -> str:
    name = public_name(node.target) or getattr(node.target, "__qualname__", str(node.target))
    return f"{getattr(node.target, '__module__', '')}.{name}".lstrip(".") if callable(node.target) else name


def _target(node: Node, words: Vocabulary) -> str | None:
    """The name of what a node calls or reads; None where no file may name it."""
    if node.op == "call_function":
        if node.target is getattr and node.args[1] not in words.attributes:
            return None
        name = public_name(node.target)
        return name if name in words.functions else None
    if node.op == "call_method" and node.target not in words.methods:
        return None
    return str(node.target)


def _described(node: Node, words: Vocabulary) -> dict[str, Any]:
    stack = node.meta.get("nn_module_stack") or {}
    try:
        args, kwargs = [encoded(part) for part in node.args], {k: encoded(v) for k, v in node.kwargs.items()}
    except CheckpointError as error:
        raise CheckpointError(
            f"the call {node.name!r} has an argument that no file can hold: {error}"
        ) from None
    return {
        "name": node.name,
        "op": node.op,
        "target": _target(node, words),
        "args": args,
        "kwargs": kwargs,
        "module": list(stack.values())[-1][0] if stack else None,
        "makes": _made(node.meta.get("tensor_meta")),
    }


def _rebuilt(
    graph: fx.Graph, entry: Any, where: str, nodes: Mapping[str, Node], words: Vocabulary, root: nn.Module
) -> Node:
    record(entry, where, name=str, op=str, target=str, args=list, kwargs=dict, module=(str, type(None)),
           makes=(dict, list, type(None)))  # fmt: skip
    name, op = entry["name"], entry["op"]
    if not _identifier(name) or name in nodes:
        raise CheckpointError(f"{where} has the name {name[:80]!r}, which is taken or no name at all")
    where = f"node {name!r}"
    if not all(map(_identifier, entry["kwargs"])):
        raise CheckpointError(f"{where} has an argument with a name that is no name at all")
    target = _looked_up(op, entry["target"], where, words, root)
    args = tuple(decoded(part, where, nodes) for part in entry["args"])
    kwargs = {key: decoded(part, where, nodes) for key, part in entry["kwargs"].items()}
    attribute = args[1] if len(args) == 2 and isinstance(args[1], str) and not kwargs else ""
    if target is getattr and attribute not in words.attributes:
        raise CheckpointError(f"{where} reads an attribute that no file may read")
    if op == "call_method" and not (args and isinstance(args[0], Node)):
        raise CheckpointError(f"{where} calls a method of nothing")
    node = graph.create_node(op, target, args, kwargs, name=name)
    if node.name != name:
        raise CheckpointError(f"{where} has a name that Python or torch.fx keeps for itself")
    if entry["module"]:
        path = check_path(entry["module"], where)
        node.meta["nn_module_stack"] = {path: (path, nn.Module)}
    made = _remade(entry["makes"], where)
    if made is not None:
        node.meta["tensor_meta"] = made
    if op == "call_function":
        node.meta["is_wrapped"] = target in _WRAPPED
    return node


def _looked_up(op: str, target: str, where: str, words: Vocabulary, root: nn.Module) -> Any:
    if op == "call_function" and target in words.functions:
        return words.functions[target]
    if (op == "call_method" and target in words.methods) or (op, target) == ("output", "output"):
        return target
    if op == "placeholder" and _identifier(target):
        return target
    if op in ("call_module", "get_attr"):
        found = _at(root, check_path(target, where))
        if isinstance(found, nn.Module if op == "call_module" else Tensor):
            return target
    if op not in _OPS:
        raise CheckpointError(f"{where} does {op[:40]!r}, which no graph does")
    raise CheckpointError(f"{where} calls {target[:80]!r}, which this version of pmsm does not know")


def _at(root: nn.Module, path: str) -> Any:
    """The module or tensor at a path; None if there is none."""
    owner_path, _, leaf = path.rpartition(".")
    owner: Any = root
    for part in owner_path.split(".") if owner_path else ():
        owner = owner._modules.get(part)
        if owner is None:
            return None
    for held in (owner._modules, owner._parameters, owner._buffers):
        if held.get(leaf) is not None:
            return held[leaf]
    return None


def _identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and len(name) < 1000


def _made(found: Any) -> Any:
    """Shape and kind of numbers of a result, tensors in tuples and dicts included."""
    if isinstance(found, TensorMetadata):
        return {"shape": list(found.shape), "dtype": str(found.dtype).removeprefix("torch.")}
    if isinstance(found, list | tuple):
        return [_made(part) for part in found]
    if isinstance(found, dict):
        return {"dict": [[encoded(key), _made(part)] for key, part in found.items()]}
    return None


def _remade(entry: Any, where: str, depth: int = 0) -> Any:
    if entry is None or depth > 8:
        return None
    if isinstance(entry, list):
        return tuple(_remade(part, where, depth + 1) for part in entry)
    if isinstance(entry, dict) and entry.keys() == {"dict"} and isinstance(entry["dict"], list):
        pairs = [pair for pair in entry["dict"] if isinstance(pair, list) and len(pair) == 2]
        return {str(key): _remade(part, where, depth + 1) for key, part in pairs}
    record(entry, where, shape=list, dtype=str)
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{where} makes numbers of the unknown kind {entry['dtype'][:40]!r}")
    shape = torch.Size(sizes(entry["shape"], where))
    return TensorMetadata(shape, DTYPES[entry["dtype"]], False, (), None, False, {})
