"""SNN with multi-spikes -> SNN with binary spikes: every timestep becomes M micro-steps."""

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import ConversionError
from pmsm.graph import Network
from pmsm.methods.neuron import Neuron
from pmsm.methods.unary import UnaryNeuron, collapse, repeat
from pmsm.snn.temporal import Static, on_signals


def unrolled(snn: Network) -> Network:
    """`snn`, changed in place, with binary spikes: a count k is sent as |k| spikes in M micro-steps.

    M is the largest count of any neuron. Layer after layer takes its M micro-steps; the spikes of a timestep
    add up to those of the multi-spike network. The currents do so up to the rounding of their sum, exactly
    where sums are exact.

    Raises:
        ConversionError: a tracking network, or one whose signals do not keep the batch in dimension 0.
    """
    if snn.meta["mode"] != "integrate":
        raise ConversionError(
            "unroll=True needs mode='integrate'. In mode='tracking' binary spikes are sent with burst=1."
        )
    if not snn.meta["batch_first"]:
        raise ConversionError(
            "unroll=True puts the micro-steps into dimension 0, beside the batch, and something in this "
            "network moves the batch, mixes it or may do so. Keep the batch first in every signal."
        )
    neurons = [(str(node.target), neuron) for node, neuron in graph.modules(snn, Neuron)]
    micro_steps = max(neuron.most_spikes for _, neuron in neurons)
    for name, neuron in neurons:
        snn.set_submodule(name, UnaryNeuron(neuron, micro_steps))
    for node, static in list(graph.modules(snn, Static)):
        snn.set_submodule(str(node.target), OncePerTimestep(static, micro_steps))
    for node in list(snn.graph.nodes):
        if node.op == "placeholder":
            graph.insert_after(snn, node, f"{node.name}_repeat", Repeat(micro_steps))
        elif node.op == "output":
            for result in set(node.all_input_nodes):
                graph.insert_after(snn, result, f"{result.name}_collapse", Collapse(micro_steps), [node])
    snn.meta["micro_steps"] = micro_steps
    return graph.finish(snn)


class Repeat(nn.Module):
    """What enters an unrolled network: a constant current in each micro-step."""

    def __init__(self, micro_steps: int):
        super().__init__()
        self.micro_steps = micro_steps

    def forward(self, x: Any) -> Any:
        """A tensor (or a pytree of them) [N, ...] -> [M * N, ...]."""
        return pytree.tree_map_only(Tensor, lambda x: repeat(x, self.micro_steps), x)

    def extra_repr(self) -> str:
        """M."""
        return f"micro_steps={self.micro_steps}"


class Collapse(Repeat):
    """What leaves an unrolled network: the mean over the micro-steps."""

    def forward(self, x: Any) -> Any:
        """A tensor (or a pytree of them) [M * N, ...] -> [N, ...]."""
        return pytree.tree_map_only(Tensor, lambda x: collapse(x, self.micro_steps), x)


class OncePerTimestep(Repeat):
    """A static map: runs once on the mean over the micro-steps, and what it gives flows in each of them."""

    def __init__(self, static: Static, micro_steps: int):
        super().__init__(micro_steps)
        self.static = static

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the map itself, with M * N rows in every signal."""
        args, kwargs = on_signals(lambda x: collapse(x, self.micro_steps), self.static.varies, (args, kwargs))
        return super().forward(self.static(*args, **kwargs))
