"""How one operator runs over several timesteps: the rule per operator, and the wrapper for nonlinear maps."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Rule(Enum):
    """What becomes of an operator when the network runs over time."""

    LINEAR = "linear"
    """Affine in its signals: runs at every step, bias included; the mean over the steps commutes with it."""
    STATIC = "static"
    """Any other map without memory: runs on the mean of its inputs so far, see `Static`."""
    PRODUCT = "product"
    """Linear in each signal: LINEAR while a single operand depends on the input, STATIC otherwise."""


@dataclass
class StaticState:
    """What a static map remembers, and how it is run.

    Args:
        timesteps: steps that arrive at once, [timesteps * N, ...], step by step in dim 0; 1: one step per
            call.
        t: steps done in earlier calls.
        sums: sum of each input over the steps so far.
        last: t * f(mean of the inputs so far).
    """

    timesteps: int = 1
    t: int = 0
    sums: list[Any] | None = None
    last: Any = None


class Static(nn.Module):
    """A static map f over time: y_t = t * f(mean of inputs up to t) - (t - 1) * f(mean of inputs up to t -
    1).

    The sum of the outputs is t * f(mean input) at every t, so the mean output is f of the mean input, and at
    t=1 the output is f itself, bit for bit.

    Args:
        operator: f; a module or a function of tensors, whose result is a tensor or any pytree of tensors.
        varies: for each leaf of the arguments, whether it is a signal; constants pass as they are. None: all
            tensors are signals.

    `state` belongs to `simulate`: with state None the map runs a single timestep and remembers nothing.
    """

    def __init__(self, operator: Callable[..., Any], varies: tuple[bool, ...] | None = None):
        super().__init__()
        self.operator, self.varies = operator, varies
        self.state: StaticState | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs of this step (or of all steps) -> its outputs."""
        if self.state is None:
            return self.operator(*args, **kwargs)
        leaves, form = pytree.tree_flatten((args, kwargs))
        varies = self.varies or tuple(isinstance(leaf, Tensor) for leaf in leaves)
        if self.state.timesteps > 1:
            return self._scan(leaves, form, varies, self.state.timesteps)
        return self._step(leaves, form, varies, self.state)

    def _step(self, leaves: list[Any], form: Any, varies: tuple[bool, ...], state: StaticState) -> Any:
        state.t += 1
        before = state.sums or [0] * len(leaves)
        state.sums = [a + b if v else b for a, b, v in zip(before, leaves, varies, strict=True)]
        means = [total / state.t if v else total for total, v in zip(state.sums, varies, strict=True)]
        args, kwargs = pytree.tree_unflatten(means, form)
        total = _map(lambda y: y * state.t, self.operator(*args, **kwargs))
        step = total if state.last is None else pytree.tree_map(_minus, total, state.last)
        state.last = total
        return step

    def _scan(self, leaves: list[Any], form: Any, varies: tuple[bool, ...], timesteps: int) -> Any:
        def means(x: Tensor) -> Tensor:
            total = x.unflatten(0, (timesteps, -1)).cumsum(0)
            return (total / _steps(total)).flatten(0, 1)

        def steps(y: Tensor) -> Tensor:
            total = y.unflatten(0, (timesteps, -1))
            total = total * _steps(total)
            return torch.cat([total[:1], total.diff(dim=0)]).flatten(0, 1)

        leaves = [means(leaf) if v else leaf for leaf, v in zip(leaves, varies, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, form)
        return _map(steps, self.operator(*args, **kwargs))

    def extra_repr(self) -> str:
        return (
            ""
            if isinstance(self.operator, nn.Module)
            else getattr(self.operator, "__name__", str(self.operator))
        )


def _minus(a: Any, b: Any) -> Any:
    return a - b if isinstance(a, Tensor) else a


def _steps(x: Tensor) -> Tensor:
    """1, 2, ... T, shaped to go with [T, ...]."""
    return torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


class TensorMethod:
    """A tensor method as a function: `TensorMethod("softmax")(x, 1)` is `x.softmax(1)`."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.__name__)(*args, **kwargs)
