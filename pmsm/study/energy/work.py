"""How much work a float pass is: operations per operator, from the recorded shapes of one sample."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from pmsm import graph
from pmsm.graph import Network, Node
from pmsm.snn.convert import _key
from pmsm.study.macs import MACS


@dataclass(frozen=True)
class Work:
    """Operations that no spike causes, whole numbers >= 0.

    Args:
        macs: multiplications by weights, or of matrices, each with the addition behind it.
        multiplies, adds, comparisons: value by value.
        functions: values of exp, erf, a root or a division.
        values: analog values read from or written to memory, operands of MACs excepted.
    """

    macs: int = 0
    multiplies: int = 0
    adds: int = 0
    comparisons: int = 0
    functions: int = 0
    values: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(a * times for a in astuple(self)))


Count = Callable[[Network, Node], Work]
"""The work of one float pass over one sample, from the recorded shapes."""


def per_output(**each: int) -> Count:
    """So many operations per value of the result."""
    return lambda _, node: Work(**each) * math.prod(graph.shape_of(node))


def per_input(**each: int) -> Count:
    """So many operations per value of the first operand."""
    return lambda _, node: Work(**each) * _size(node)


def both(a: Count, b: Count) -> Count:
    """The sum of two."""
    return lambda network, node: a(network, node) + b(network, node)


def _shape(node: Node) -> tuple[int, ...]:
    """Of the first operand that is no plain number."""
    return graph.shape_of(node.kwargs.get("input", node.all_input_nodes[0]))  # pyright: ignore[reportArgumentType]


def _size(node: Node) -> int:
    return math.prod(_shape(node))


def free(_: Network, __: Node) -> Work:
    """No operation: shapes change, values do not."""
    return Work()


def multiplied(network: Network, node: Node) -> Work:
    """MACs, by the table of macs.py."""
    return Work(macs=MACS[_key(graph.kind_of(network, node), MACS)](network, node))


def joined(_: Network, node: Node) -> Work:
    """Additions that make the values of the result out of those of the operand."""
    return Work(adds=_size(node) - math.prod(graph.shape_of(node)))


def meaned(network: Network, node: Node) -> Work:
    """Additions, and a multiplication per value of the result."""
    return joined(network, node) + Work(multiplies=math.prod(graph.shape_of(node)))


def _windows(network: Network, node: Node) -> int:
    """Values that all windows of a pool read, at a border as many as elsewhere."""
    module: Any = graph.module_of(network, node)
    pools = (*graph.MAXPOOLS, *graph.AVGPOOLS)
    dims = int(_key(type(module), dict.fromkeys(pools)).__name__[-2])
    before, after = _shape(node), graph.shape_of(node)
    if hasattr(module, "kernel_size"):
        size = module.kernel_size
        return math.prod(after) * (math.prod(size) if isinstance(size, tuple) else size**dims)
    lengths = [  # adaptive: window i of m over n places goes from floor(i n / m) to ceil((i + 1) n / m)
        sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
        for n, m in zip(before[-dims:], after[-dims:], strict=True)
    ]
    return math.prod(after[:-dims]) * math.prod(lengths)


def averaged(network: Network, node: Node) -> Work:
    """An average pool: additions in each window, and a multiplication by 1 / size."""
    results = math.prod(graph.shape_of(node))
    return Work(adds=_windows(network, node) - results, multiplies=results)


def maximum(network: Network, node: Node) -> Work:
    """A max pool: comparisons in each window."""
    return Work(comparisons=_windows(network, node) - math.prod(graph.shape_of(node)))


TAPS = {"linear": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}
"""Mode of interpolation -> values that each result is a weighted sum of; the other modes copy or average."""


def interpolated(network: Network, node: Node) -> Work:
    """A weighted sum per value of the result, as the mode has it."""
    mode = _setting(network, node, 3, "mode", "nearest")
    if mode == "area":
        return Work(adds=_size(node))
    taps = TAPS.get(mode, 0)
    return Work(multiplies=taps, adds=max(taps - 1, 0)) * math.prod(graph.shape_of(node))


def normalized(group: Callable[[Network, Node], int], each: Work) -> Count:
    """So much per value, and an inverse root per group of values that are normalized together."""
    return lambda network, node: each * _size(node) + Work(functions=_size(node) // group(network, node))


def last_dims(network: Network, node: Node) -> int:
    """Values that a LayerNorm normalizes together."""
    shape = _setting(network, node, 1, "normalized_shape", None)
    known = isinstance(shape, tuple | list) and all(isinstance(n, int) for n in shape)
    return math.prod(shape) if known else _shape(node)[-1]


def channel_group(network: Network, node: Node) -> int:
    """Values that a GroupNorm normalizes together, in one sample."""
    return math.prod(_shape(node)[1:]) // _setting(network, node, 1, "num_groups", 1)


def divided(_: Network, node: Node) -> Work:
    """A division, or where the divisor is a number, a multiplication by its inverse."""
    results = math.prod(graph.shape_of(node))
    divisor = node.kwargs["other"] if "other" in node.kwargs else node.args[1]
    return Work(functions=results) if isinstance(divisor, Node) else Work(multiplies=results)


def neighbors(network: Network, node: Node) -> Work:
    """Local response: a sum of squares over `size` channels, a power and a division per value."""
    size = _setting(network, node, 1, "size", 1)
    return Work(multiplies=size, adds=size, functions=2) * _size(node)


def _setting(network: Network, node: Node, position: int, name: str, default: Any) -> Any:
    """A setting of a module, or an argument of a function."""
    if node.op == "call_module":
        return getattr(graph.module_of(network, node), name, default)
    given = node.args[position] if len(node.args) > position else default
    return node.kwargs.get(name, given)
