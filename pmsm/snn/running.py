"""Run an SNN one frame at a time, for live use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.snn.frames import Frames, shown
from pmsm.snn.run import Spikes
from pmsm.snn.simulate import check_choices, check_network, read_out
from pmsm.snn.state import Opened, opened


@contextmanager
def running(snn: Network, *, record: str | None = None) -> Iterator["Stepper"]:
    """Run `snn` one frame at a time, for live use: `with running(snn) as step: y = step(frame)`.

    State is carried from frame to frame until the block ends or `step.reset()`. Nothing else is kept: such a
    run may last for ever.

    Args:
        snn: spiking network from `convert`; as it was found after the block.
        record: as in `simulate`, for the spikes of the latest frame, `step.spikes`.

    Raises:
        SimulationError: not a spiking network, or one that is running already.
    """
    check_network(snn)
    check_choices(record, "steps")
    with opened(snn) as state:
        stepper = Stepper(snn, state, record)
        try:
            yield stepper
        finally:
            stepper.close()


class Stepper:
    """A network that is running; see `running`.

    Attributes:
        t: steps done since the start or the last reset.
        spikes: layer -> `Spikes` of the latest frame, if they are recorded.
    """

    def __init__(self, snn: Network, state: Opened, record: str | None):
        self.t = 0
        self.spikes: dict[str, Spikes] = {}
        self._snn, self._state, self._record = snn, state, record
        self._total: Any = None
        self._shapes: list[torch.Size] = []
        self._closed = False

    @torch.no_grad()
    def __call__(self, x: Any, timesteps: int = 1) -> Any:
        """Present one frame for `timesteps` steps.

        Args:
            x: [N, ...], or a tuple for several inputs; the same shapes in every call.

        Returns:
            The read-out: the mean over all steps so far (integrate), or what the spikes add up to (tracking).

        Raises:
            SimulationError: another shape than before, NaN or Inf, or the block has ended; the run goes on as
                if the frame had not been.
        """
        frames = Frames(tuple(x) if isinstance(x, tuple | list) else (x,), timesteps, False, False)
        frames.check()
        self._check(frames)
        if self.t == 0:
            self._state.start(1, keep=True)
        self._state.listen(self._record, timesteps, frames.samples, first=-self.t)
        for _ in range(timesteps):
            y = self._state.forward(frames.tensors)
            self.t += 1
            self._total, output = read_out(self._snn, y, self._total, self.t)
        self.spikes = self._state.read(timesteps)
        return output

    def reset(self) -> None:
        """Forget everything: the next frame is the first."""
        self.t, self._total, self._shapes = 0, None, []

    def close(self) -> None:
        """No further frame is taken."""
        self._closed = True

    def _check(self, frames: Frames) -> None:
        if self._closed:
            raise SimulationError("this run has ended: call the step inside of `with pmsm.running(snn)`.")
        shapes = [x.shape for x in frames.tensors]
        if self.t and shapes != self._shapes:
            raise SimulationError(
                f"every neuron remembers a potential per sample, and this frame has shape "
                f"{shown(shapes)} after {shown(self._shapes)}. Call step.reset() before a new input."
            )
        self._shapes = shapes
