"""How one operator runs over several timesteps: the rule per operator, and the wrapper for nonlinear maps."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

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
    """Sums of the inputs so far, t * f(mean of inputs) of the last step, and the number of steps."""

    sums: list[Any]
    last: Any
    t: int


class Static(nn.Module):
    """A static map f over time: y_t = t * f(mean of inputs up to t) - (t - 1) * f(mean of inputs up to t - 1).

    The sum of the outputs is t * f(mean input) at every t, so the mean output is f of the mean input, and at t=1 the
    output is f itself, bit for bit.

    Args:
        operator: f; a module or a function of tensors, whose result is a tensor or any pytree of tensors.
    """

    def __init__(self, operator: Callable[..., Any]):
        super().__init__()
        self.operator = operator
        self.state: StaticState | None = None
        self.opened = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs of this step -> the output of this step."""
        if not self.opened:
            return self.operator(*args, **kwargs)
        leaves, form = pytree.tree_flatten((args, kwargs))
        if self.state is None:
            result = self.operator(*args, **kwargs)
            self.state = StaticState([_copied(leaf) for leaf in leaves], _map(_copied, result), 1)
            return result
        state = self.state
        state.t += 1
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                state.sums[i] += leaf
        means = [total / state.t if isinstance(total, Tensor) else total for total in state.sums]
        mean_args, mean_kwargs = pytree.tree_unflatten(means, form)
        total = _map(lambda y: y * state.t, self.operator(*mean_args, **mean_kwargs))
        step = pytree.tree_map(lambda new, old: new - old if isinstance(new, Tensor) else new, total, state.last)
        state.last = total
        return step

    def extra_repr(self) -> str:
        return "" if isinstance(self.operator, nn.Module) else getattr(self.operator, "__name__", str(self.operator))


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


class Method:
    """A tensor method as a function: `Method("softmax")(x, 1)` is `x.softmax(1)`."""

    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.__name__)(*args, **kwargs)
