"""What the Python code of a network may learn of a traced value: its shape, and nothing of the data."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute

from pmsm.errors import TraceError
from pmsm.graph.network import Node

SAME = "the graph was traced for inputs of other sizes: the network decides by {} here. Trace it again."


class Tracer(fx.Tracer):
    """Traces one module per call, and answers questions of control flow that shapes decide.

    The answers come from the example. They must not change with the batch size: each is asked again of a
    batch of twice the size. The graph asserts every answer whenever it runs.

    Args:
        leaves: module types to be kept as one operator each.
        inputs: the example; without it every question is refused.
    """

    proxy_buffer_attributes = True  # a buffer may be indexed and expanded by traced sizes

    def __init__(self, leaves: tuple[type[nn.Module], ...] = (), inputs: tuple[Any, ...] | None = None):
        super().__init__()  # with defaults: a pickled graph makes a tracer of its own
        self.leaves, self.inputs = leaves, inputs
        self.looking = False
        self.examples: list[dict[Node, Any]] = []
        self.asserted: set[Node] = set()
        self.training_only: set[str] = set()  # paths of modules that do nothing in evaluation mode

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is kept as one operator: those of `leaves`, and those of torch.nn."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: Node) -> fx.Proxy:
        """A value that also answers what its shape answers."""
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The branch that the shapes decide; otherwise torch.fx refuses."""
        known = self._answer(obj.node)
        return super().to_bool(obj) if known is None else bool(known[0])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The members, where the shapes tell how many there are; otherwise torch.fx refuses."""
        length = self.length(obj)
        return super().iter(obj) if length is None else iter([obj[i] for i in range(length)])  # pyright: ignore

    def length(self, obj: fx.Proxy) -> int | None:
        """How many members a tuple or a tensor has; None where nobody can know."""
        node = self.create_node("call_function", len, (obj.node,), {})
        node.meta["is_wrapped"] = True  # stays a call when unpickled
        known = self._answer(node)
        return None if known is None else known[0]

    def number(self, obj: fx.Proxy) -> Any:
        """The number that shapes make of a value."""
        known = self._answer(obj.node)
        if known is None:
            raise TraceError("Python needs a number that depends on the data or on the batch size")
        return known[0]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Enter a module, or keep it as one call: what a leaf is, and what acts in training only."""
        made_by_forward = m not in (self.submodule_paths or {})  # as in nn.ReLU()(x)
        if self.looking or made_by_forward:
            return forward(*args, **kwargs)
        result = super().call_module(m, forward, args, kwargs)
        if args and result is args[0] and _may_act_in_training(m):
            path = self.path_of_module(m)
            self.training_only.add(path)
            return self.create_proxy("call_module", path, args, kwargs)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A parameter or buffer as a node, but for the pass that only looks at shapes."""
        return attr_val if self.looking else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _answer(self, node: Node) -> tuple[Any] | None:
        """The value of a node if it is a Python value that the data and the batch size leave alone."""
        if self.inputs is None:
            return None
        self.looking = True
        try:
            one, two = (self._evaluate(node, example) for example in self._examples())
        except Exception:  # whatever keeps shapes from being known: the question is refused as data-dependent
            return None
        finally:
            self.looking = False
        if isinstance(one, Tensor) or type(one) is not type(two) or one != two:
            return None
        self._assert_same(node, one)
        return (one,)

    def _examples(self) -> list[dict[Node, Any]]:
        """Known values by node, for the example and for a batch of twice its size: sizes without data."""
        if not self.examples:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            given = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in self.inputs or ()]
            with mode:
                double = [torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() else x for x in given]
            nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
            self.examples = [dict(zip(nodes, batch, strict=True)) for batch in (given, double)]
            self.mode = mode
        return self.examples

    def _evaluate(self, node: Node, known: dict[Node, Any]) -> Any:
        needed, waiting = set(), [node]
        while waiting:
            new = waiting.pop()
            if new not in known and new not in needed:
                needed.add(new)
                waiting += new.all_input_nodes
        with self.mode, torch.no_grad():
            for new in [n for n in self.graph.nodes if n in needed]:
                known[new] = self._result(new, known)
        return known[node]

    def _result(self, node: Node, known: dict[Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def _assert_same(self, node: Node, value: Any) -> None:
        """Let the graph check the answer whenever it runs."""
        if node not in self.asserted and isinstance(value, bool | int | float | str):
            self.asserted.add(node)
            same = self.create_node("call_function", operator.eq, (node, value), {})
            self.create_node("call_function", torch._assert, (same, SAME.format(node.name)), {})


def _may_act_in_training(module: nn.Module) -> bool:
    """Whether a module that hands on what it is given may do more in training mode."""
    stateless = next(module.parameters(), None) is None and next(module.buffers(), None) is None
    return stateless and not isinstance(module, nn.Sequential)


class _Proxy(fx.Proxy):
    """A traced value that may be asked for its length, or to be a number."""

    tracer: Tracer

    def __getattr__(self, k: str) -> "_Attribute":
        return _Attribute(self, k)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        length = self.tracer.length(self)
        return super().__len__() if length is None else length

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))


class _Attribute(_Proxy, Attribute):
    """An attribute of a traced value."""
