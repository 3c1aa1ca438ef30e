"""The names by which a file may call functions, tensor methods and attributes: what is not here, no file can
call.
"""

import builtins
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from pmsm.graph import decompose
from pmsm.graph.operators import MEAN_CALLS, MOVING_CALLS, PADDING_CALLS, SIZE_CALLS

NAMESPACES: dict[str, ModuleType] = {
    "operator": operator, "torch": torch, "torch.nn.functional": F, "torch.linalg": torch.linalg,
    "math": math, "builtins": builtins, "pmsm.graph.decompose": decompose,
}  # fmt: skip
"""Where a function's public name is looked up, the first that holds it speaks."""

SHAPE_FUNCTIONS = (
    *(getattr(operator, name) for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg",
        "pos", "abs", "and_", "or_", "xor", "invert", "not_", "getitem",
    )),
    math.ceil, math.floor, math.sqrt, math.prod, len, min, max, round, sum, torch._assert, torch.floor_divide,
    torch.remainder, torch.fmod, torch.floor, torch.ceil, torch.round, torch.trunc, torch.sign,
)  # fmt: skip
"""Arithmetic on sizes, and the answers that a graph asserts."""

MAKING_FUNCTIONS = (
    torch.arange, torch.linspace, torch.zeros, torch.ones, torch.full, torch.eye,
    torch.zeros_like, torch.ones_like, torch.full_like, torch.tril, torch.triu,
    torch.meshgrid, torch.outer, torch.bucketize, torch.scalar_tensor, torch.broadcast_tensors,
    torch.logical_not, torch.sin, torch.cos, torch.exp, torch.log, torch.square, torch.where,
    decompose.causal_mask, decompose.additive_mask,
)  # fmt: skip
"""What makes constants: positions, masks, zeros; nothing that leaves memory as it was."""

PLAIN_METHODS = frozenset({
    "sin", "cos", "exp", "log", "floor", "ceil", "round", "sign", "tril", "triu", "outer", "item", "to",
    "new_zeros", "new_ones", "new_full", "logical_not", "floor_divide", "remainder",
    "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool", "cpu", "element_size",
})  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Name -> function; names of tensor methods; names of the attributes that a graph may read.

    >>> words = Vocabulary.of([torch.relu, "softmax", ".shape"])
    >>> words.functions["torch.relu"] is torch.relu, "softmax" in words.methods
    (True, True)
    """

    functions: dict[str, Callable[..., Any]]
    methods: frozenset[str]
    attributes: frozenset[str]

    @staticmethod
    def of(calls: Iterable[Any]) -> "Vocabulary":
        """The words for these calls (functions, names of methods, "." and the name of an attribute), and for
        what graphs do with shapes and constants.
        """
        words = {
            *calls, *MOVING_CALLS, *PADDING_CALLS, *MEAN_CALLS, *SIZE_CALLS, *SHAPE_FUNCTIONS,
            *MAKING_FUNCTIONS, *PLAIN_METHODS,
        }  # fmt: skip
        texts = {word for word in words if isinstance(word, str)}
        functions = {name: word for word in words - texts if (name := public_name(word))}
        attributes = {text.removeprefix(".") for text in texts if text.startswith(".")}
        methods = texts - {f".{attribute}" for attribute in attributes}
        return Vocabulary(
            functions | {"builtins.getattr": getattr}, frozenset(methods), frozenset(attributes)
        )


def public_name(function: Any) -> str | None:
    """Under which name a function is found in `NAMESPACES`, such as "torch.nn.functional.linear"; None if it
    is in none of them.
    """
    name = str(getattr(function, "__name__", ""))
    found = (
        f"{space}.{short}"
        for space, module in NAMESPACES.items()
        for short in (name, name.removeprefix("linalg_"))
        if short and vars(module).get(short) is function
    )
    return next(found, None)
