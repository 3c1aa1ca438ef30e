"""The state of a spiking network: opened for a run, fresh for its samples, closed without a trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from pmsm import graph
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.methods.neuron import Neuron, NeuronState
from pmsm.snn.run import Recorder, Spikes
from pmsm.snn.temporal import Static, StaticState


class Opened:
    """The state of a network for the time of one run."""

    def __init__(self, snn: Network):
        self.snn = snn
        self.stateful: list[Any] = [m for m in snn.modules() if isinstance(m, Neuron | Static)]
        if snn.meta.get("running"):
            raise SimulationError(
                "this network is running already, and its neurons hold the state of that run. Let it end, or "
                "run a copy: copy.deepcopy(snn)."
            )
        snn.meta["running"] = True
        self.modes = {module: module.training for module in snn.modules()}
        snn.eval()
        self.recorders: dict[str, Recorder] = {}

    def listen(self, record: str | None, timesteps: int, samples: int, first: int = 0) -> None:
        """Attach a fresh recorder to every neuron, if spikes are to be recorded."""
        for node, neuron in graph.modules(self.snn, Neuron) if record is not None else ():
            recorder = Recorder(timesteps, samples, keep=record == "counts", signed=neuron.quant_min < 0)
            recorder.first = first
            self.recorders[str(node.target)] = neuron.probe = recorder

    def start(self, steps_at_once: int, *, keep: bool, first: int = 0, samples: slice = slice(None)) -> None:
        """Fresh state for the next samples, or none at all where a single timestep needs none."""
        for module in self.stateful:
            fresh = NeuronState(steps_at_once) if isinstance(module, Neuron) else StaticState(steps_at_once)
            module.state = fresh if keep else None  # pyright: ignore[reportAttributeAccessIssue]
        for recorder in self.recorders.values():
            recorder.first, recorder.where = first, np.arange(recorder.samples)[samples]

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        """The network's output, for one step or for all."""
        y = graph.run(self.snn, inputs, SimulationError, "the input ")
        for recorder in self.recorders.values():
            recorder.settle()
        return y

    def keep(self, going: Tensor, active: Tensor) -> None:
        """Forget the samples that stopped: `going` says which of the present ones do not, `active` who they
        are.
        """
        for module in self.stateful:
            if module.state is not None:
                module.state = _select(module.state, going)
        for recorder in self.recorders.values():
            recorder.where = active.cpu().numpy()

    def read(self, timesteps: int) -> dict[str, Spikes]:
        """What was recorded in the first steps."""
        return {name: recorder.read(timesteps) for name, recorder in self.recorders.items()}

    def close(self) -> None:
        """Leave no trace in the network."""
        for module, training in self.modes.items():
            module.training = training
        for module in self.stateful:
            module.state = None
            if isinstance(module, Neuron):
                module.probe = None
        del self.snn.meta["running"]


def _select(state: Any, going: Tensor) -> Any:
    """The state of some samples; several rows per sample (windows) lie one behind the other."""

    def rows(x: Tensor) -> Tensor:
        return x.unflatten(0, (len(going), -1))[going].flatten(0, 1)

    return type(state)(**{name: each(rows, value) for name, value in vars(state).items()})


@contextmanager
def opened(snn: Network) -> Iterator[Opened]:
    """A network ready to run, for the length of the block."""
    state = Opened(snn)
    try:
        yield state
    finally:
        state.close()


def each(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` on the tensors of like trees; anything else is taken from the first."""
    return pytree.tree_map(lambda *xs: function(*xs) if isinstance(xs[0], Tensor) else xs[0], *trees)
