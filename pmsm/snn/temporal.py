"""How one operator runs over several timesteps: the rule per operator, and the wrapper for nonlinear maps."""

from collections.abc import Callable
from dataclasses import dataclass, field
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
        sums: sum of each signal over the steps so far, in the order of the arguments.
        last: t * f(mean of the inputs so far).
    """

    timesteps: int = 1
    t: int = 0
    sums: list[Tensor] = field(default_factory=list)
    last: Any = None


class Static(nn.Module):
    """A static map f over time: y_t = t * f(mean of inputs up to t) - (t - 1) * f(mean of inputs up to t -
    1).

    The sum of the outputs is t * f(mean input) at every t, so the mean output is f of the mean input, and at
    t=1 the output is f itself, bit for bit.

    Truth values and whole numbers (a comparison, an index) have no mean. They travel as they are, f of the
    mean inputs so far, and a map that reads them takes them as they come.

    Args:
        operator: f; a module or a function of tensors, whose result is a tensor or any pytree of tensors.
        varies: what of the arguments (args, kwargs) is a signal: True or False, or a tuple, list or dict of
            such for the parts of an argument. What is no signal passes as it is.

    `state` belongs to `simulate`: with state None the map runs a single timestep and remembers nothing.
    """

    def __init__(self, operator: Callable[..., Any], varies: Any = True):
        super().__init__()
        self.operator, self.varies = operator, varies
        self.state: StaticState | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs of this step (or of all steps) -> its outputs."""
        if self.state is None:
            return self.operator(*args, **kwargs)
        run = self._scan if self.state.timesteps > 1 else self._step
        return run((args, kwargs), self.state)

    def _step(self, given: Any, state: StaticState) -> Any:
        state.t += 1
        before, state.sums = iter(state.sums), []

        def mean(x: Tensor) -> Tensor:
            """Mean of an input over the steps so far, whose sum is kept."""
            if not _is_number(x):
                return x
            state.sums.append(x if state.t == 1 else next(before) + x)
            return state.sums[-1] / state.t

        args, kwargs = on_signals(mean, self.varies, given)
        total = _each(lambda y: y * state.t, self.operator(*args, **kwargs))
        step = total if state.t == 1 else _each(lambda a, b: a - b, total, state.last)
        state.last = total
        return step

    def _scan(self, given: Any, state: StaticState) -> Any:
        def means(x: Tensor) -> Tensor:
            """The same for all steps at once, [T * N, ...]."""
            if not _is_number(x):
                return x
            total = x.unflatten(0, (state.timesteps, -1)).clone()
            for t in range(1, state.timesteps):  # as in `_step`; cumsum would round otherwise
                total[t] += total[t - 1]
            return (total / _steps(total)).flatten(0, 1)

        def steps(y: Tensor) -> Tensor:
            """[T * N, ...] results f(mean_t) -> what each step adds, t f(mean_t) - (t-1) f(mean_(t-1))."""
            total = y.unflatten(0, (state.timesteps, -1))
            total = total * _steps(total)
            return torch.cat([total[:1], total.diff(dim=0)]).flatten(0, 1)

        args, kwargs = on_signals(means, self.varies, given)
        return _each(steps, self.operator(*args, **kwargs))

    def extra_repr(self) -> str:
        """Name of the function; a module shows itself."""
        return (
            ""
            if isinstance(self.operator, nn.Module)
            else getattr(self.operator, "__name__", str(self.operator))
        )


def on_signals(function: Callable[[Tensor], Any], varies: Any, given: Any) -> Any:
    """`function` on every tensor of the signals in `given`; `varies` says where those are, see `Static`."""
    if isinstance(varies, bool):
        return pytree.tree_map_only(Tensor, function, given) if varies else given
    if isinstance(varies, dict):
        return {key: on_signals(function, part, given[key]) for key, part in varies.items()}
    parts = [on_signals(function, part, x) for part, x in zip(varies, given, strict=True)]
    return parts if isinstance(given, list) else tuple(parts)


def _each(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` on the tensors of numbers of like trees; anything else is taken from the first."""
    return pytree.tree_map(lambda *xs: function(*xs) if _is_number(xs[0]) else xs[0], *trees)


def _is_number(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _steps(x: Tensor) -> Tensor:
    """1, 2, ... T, shaped to go with [T, ...]."""
    return torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))


class TensorMethod:
    """A tensor method as a function: `TensorMethod("softmax")(x, 1)` is `x.softmax(1)`."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.__name__)(*args, **kwargs)
