"""What a run over time gives: read-outs, spikes per layer and step, and the recorder that counts them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass
class Spikes:
    """Spikes of one layer, signed multi-spikes counted by size: a count of -3 is three negative spikes.

    Args:
        neurons: neurons per sample.
        positive, negative: [T, N], spikes of each polarity per step and sample, whole numbers >= 0; [T, 1]
            where the layer's signal does not keep samples apart in dimension 0.
        counts: [T, N, ...] signed counts (int16), if they were asked for.
    """

    neurons: int
    positive: Tensor
    negative: Tensor
    counts: Tensor | None = None

    @property
    def total(self) -> int:
        """Spikes of both polarities over all steps and samples."""
        return int(self.positive.sum() + self.negative.sum())


@dataclass
class Run:
    """What `simulate` returns.

    Args:
        outputs: [T, N, ...] (a pytree of such): the read-out after 1, 2, ... T steps: in integrate mode the
            mean over the steps so far, in tracking mode the sum of the spikes so far. A sample that stopped
            keeps its last.
        timesteps: T, the steps that were run: fewer than asked for where every sample stopped earlier.
        samples: N.
        steps: [N], int64, the steps of each sample.
        spikes: layer -> `Spikes`, in the order of execution; empty if they were not asked for.
        micro_steps: steps of the hardware per timestep, 1 unless the network is unrolled.
    """

    outputs: Any
    timesteps: int
    samples: int
    steps: Tensor
    spikes: dict[str, Spikes] = field(default_factory=dict)
    micro_steps: int = 1

    @property
    def output(self) -> Any:
        """The read-out after the last step."""
        return pytree.tree_map(lambda x: x[-1] if isinstance(x, Tensor) else x, self.outputs)

    @property
    def mean_timesteps(self) -> float:
        """Steps per sample."""
        return float(self.steps.double().mean())

    def sent(self, timesteps: int | None = None) -> int:
        """Spikes of both polarities of all layers and samples in the first `timesteps` steps (default:
        all).
        """
        return sum(
            int(s.positive[:timesteps].sum() + s.negative[:timesteps].sum()) for s in self.spikes.values()
        )

    def spikes_per_neuron(self, timesteps: int | None = None) -> float:
        """Mean over samples and neurons of the spikes sent in the first `timesteps` steps (default: all)."""
        return self.sent(timesteps) / (self.samples * sum(s.neurons for s in self.spikes.values()))


class Recorder:
    """The probe of one layer: counts its spikes as they are sent.

    Exact: sums below 2**24, or in float64.

    Args:
        timesteps, samples: T and N.
        keep: keep every count.
        signed: negative spikes occur in the first step.

    Attributes:
        first: steps that were done before the neuron's state was fresh.
        active: [n], which samples the rows are; None for all.
    """

    def __init__(self, timesteps: int, samples: int, *, keep: bool, signed: bool):
        self.samples, self.signed, self.keep = samples, signed, keep
        self.per_row, self.first = 0, 0
        self.active: np.ndarray | None = None
        self.steps = [_Step() for _ in range(timesteps)]

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        """See `Probe`."""
        neurons = spikes[0].numel()
        exact = torch.float64 if neurons * 64 >= 2**24 else torch.promote_types(spikes.dtype, torch.float32)
        net = _whole(spikes.flatten(1).sum(1, dtype=exact))
        # Only from t=2 on does a rectified site send negative spikes, to take back what it sent too early.
        one_sign = t == 0 and not self.signed
        size = net if one_sign else _whole(spikes.abs().flatten(1).sum(1, dtype=exact))
        self._append(t, net, size, neurons)
        if self.keep:
            self.steps[self.first + t].counts.append(spikes.to("cpu", torch.int16))

    def add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        """See `Probe`."""
        for i in range(len(net)):
            self._append(t + i, net[i], size[i], neurons)

    def _append(self, t: int, net: np.ndarray, size: np.ndarray, neurons: int) -> None:
        step = self.steps[self.first + t]
        step.net.append(net)
        step.size.append(size)
        step.active = self.active
        self.per_row = neurons

    def read(self, timesteps: int) -> Spikes:
        """The first `timesteps` steps, rows summed to samples: several rows per sample (windows), or one
        column where the layer mixes them.
        """
        rows = sum(map(len, self.steps[0].net))
        columns = self.samples if rows % self.samples == 0 else 1
        net, size = np.zeros((2, timesteps, columns), np.int64)
        for t, step in enumerate(self.steps[:timesteps]):
            where = slice(None) if step.active is None else step.active
            here = columns if step.active is None else len(step.active)
            net[t, where], size[t, where] = (
                np.concatenate(parts).reshape(here, -1).sum(1) for parts in (step.net, step.size)
            )
        positive, negative = (torch.from_numpy((size + sign * net) // 2) for sign in (1, -1))
        return Spikes(self.per_row * rows // self.samples, positive, negative, self._counts(timesteps))

    def _counts(self, timesteps: int) -> Tensor | None:
        if not self.keep:
            return None
        first = torch.cat(self.steps[0].counts)
        counts = first.new_zeros(timesteps, *first.shape)
        for t, step in enumerate(self.steps[:timesteps]):
            if step.active is None:
                counts[t] = torch.cat(step.counts)
            else:  # several rows per sample lie side by side
                by_sample = counts[t].view(self.samples, -1)
                by_sample[torch.from_numpy(step.active)] = torch.cat(step.counts).view(len(step.active), -1)
        return counts


@dataclass
class _Step:
    """What a recorder heard in one step: sums of k and |k| and counts, some rows at a time, and whose."""

    net: list[np.ndarray] = field(default_factory=list)
    size: list[np.ndarray] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    active: np.ndarray | None = None


def _whole(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.int64)
