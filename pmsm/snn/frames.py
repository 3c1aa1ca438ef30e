"""What is presented to a network when, and when each sample stops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsm.errors import SimulationError

Until = float | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Frames:
    """What is presented when: `tensors` [N, ...], or [F, N, ...] in a stream, each for `per_frame` steps."""

    tensors: tuple[Any, ...]
    per_frame: int
    stream: bool
    reset: bool

    def check(self) -> None:
        """Refuse what cannot be presented."""
        t = self.per_frame
        if isinstance(t, bool) or not isinstance(t, int) or t < 1:
            raise SimulationError(f"simulate needs a whole number of timesteps >= 1, got {t!r}.")
        front = 1 + self.stream
        usable = all(
            isinstance(x, Tensor) and x.dim() >= front and min(x.shape[:front]) for x in self.tensors
        )
        if not self.tensors or not usable:
            first, shape = ("time", "[F, N, ...]") if self.stream else ("batch", "[N, ...]")
            raise SimulationError(
                f"simulate needs at least one sample, {first} dimension first: x of shape {shape}."
            )
        if len({x.shape[:front] for x in self.tensors}) > 1:
            raise SimulationError(
                f"the inputs differ in their {'frames or samples' if self.stream else 'samples'}: shapes "
                f"{shown([x.shape for x in self.tensors])}."
            )

    @property
    def frames(self) -> int:
        """F, or 1 for a constant input."""
        return len(self.tensors[0]) if self.stream else 1

    @property
    def samples(self) -> int:
        """N."""
        return self.tensors[0].shape[1 if self.stream else 0]

    @property
    def timesteps(self) -> int:
        """T, over all frames."""
        return self.frames * self.per_frame

    def at(self, t: int, active: Tensor | None) -> tuple[Any, ...]:
        """The input of step `t` (from 0) for the samples `active`."""
        now = tuple(x[t // self.per_frame] for x in self.tensors) if self.stream else self.tensors
        return now if active is None else tuple(x[active] for x in now)

    def all_steps(self, rows: slice) -> tuple[Any, ...]:
        """[T * n, ...] the input of all steps for some samples, step by step."""
        if not self.stream:
            return tuple(x[rows].repeat(self.per_frame, *[1] * (x.dim() - 1)) for x in self.tensors)
        return tuple(x[:, rows].repeat_interleave(self.per_frame, 0).flatten(0, 1) for x in self.tensors)


@dataclass(frozen=True)
class Ending:
    """When a sample stops: after its last step, or where it is sure enough."""

    last: Tensor | None  # [N], step after which a sample stops
    until: Until | None

    @staticmethod
    def of(frames: Frames, lengths: Tensor | None, until: Until | None) -> "Ending | None":
        """None if all samples run to the end."""
        if lengths is None and until is None:
            return None
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            whole = lengths.shape == (frames.samples,) and not lengths.is_floating_point()
            if not whole or not 1 <= int(lengths.min()) <= int(lengths.max()) <= frames.frames:
                raise SimulationError(
                    f"lengths needs {frames.samples} whole numbers from 1 to {frames.frames}, the frames of "
                    f"each sample, got {lengths!r}."
                )
            lengths = lengths.to(frames.tensors[0].device) * frames.per_frame
        if until is not None and not callable(until) and not 0 < until <= 1:
            raise SimulationError(
                f"until needs a confidence in (0, 1], or a function of the read-out, got {until!r}."
            )
        return Ending(lengths, until)

    def stops(self, t: int, output: Any, active: Tensor) -> Tensor:
        """[n], bool: which of the samples `active` stop after step `t` (from 1)."""
        stops = torch.zeros(len(active), dtype=torch.bool, device=active.device)
        if self.last is not None:
            stops |= self.last[active] <= t
        if self.until is not None:
            stops |= self._sure(output, len(active))
        return stops

    def _sure(self, output: Any, samples: int) -> Tensor:
        if callable(self.until):
            sure = self.until(output)
            if isinstance(sure, Tensor) and sure.dtype == torch.bool and sure.shape == (samples,):
                return sure
            raise SimulationError(
                f"the function until must give a bool per sample, [{samples}], got "
                f"{sure.dtype if isinstance(sure, Tensor) else type(sure).__name__} "
                f"{list(sure.shape) if isinstance(sure, Tensor) else ''}."
            )
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise SimulationError(
                "a confidence needs a read-out [N, classes]; this network's is another. Pass a function, "
                "until=lambda output: ..., that gives a bool per sample."
            )
        return output.softmax(1).amax(1) >= self.until  # pyright: ignore[reportOperatorIssue]


def shown(shapes: list[torch.Size]) -> str:
    """Shapes as a refusal writes them."""
    return ", ".join(str(list(shape)) for shape in shapes)
