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
        where: which of the N samples the pass runs, a slice or their indices.
    """

    def __init__(self, timesteps: int, samples: int, *, keep: bool, signed: bool):
        self.samples, self.signed, self.keep = samples, signed, keep
        self.first, self.where = 0, np.arange(samples)
        self._per_row, self._rows, self._mixes = 0, 1, False  # neurons in a row; rows of a sample
        self._net, self._size = np.zeros((2, timesteps, samples), np.int64)
        self._counts: Tensor | None = None
        self._heard: dict[int, _Step] = {}

    def __call__(self, spikes: Tensor, t: int, row: int) -> None:
        """See `Probe`."""
        neurons = spikes[0].numel()
        # Only from t=2 on does a rectified site send negative spikes, to take back what it sent too early.
        one_sign = t == 0 and not self.signed
        sizes, exact = spikes if one_sign else spikes.abs(), torch.promote_types(spikes.dtype, torch.float32)
        size = sizes.flatten(1).sum(1, dtype=exact)
        if exact != torch.float64 and size.max() >= 2**24:  # from here on float32 rounds
            exact, size = torch.float64, sizes.flatten(1).sum(1, dtype=torch.float64)
        net = size if one_sign else spikes.flatten(1).sum(1, dtype=exact)
        self._hear(t, _whole(net), _whole(size), neurons)
        if self.keep:
            self._heard[self.first + t].counts.append(spikes.to("cpu", torch.int16))

    def add(self, net: np.ndarray, size: np.ndarray, t: int, neurons: int) -> None:
        """See `Probe`."""
        for i in range(len(net)):
            self._hear(t + i, net[i], size[i], neurons)

    def _hear(self, t: int, net: np.ndarray, size: np.ndarray, neurons: int) -> None:
        step = self._heard.setdefault(self.first + t, _Step())
        step.net.append(net)
        step.size.append(size)
        self._per_row = neurons

    def settle(self) -> None:
        """A pass is over: rows are summed to samples, several per sample (windows), or all into the first
        where the layer mixes samples. What was heard is let go: small arrays that stay between large ones
        keep the heap of the C library from being used again.
        """
        for t, step in self._heard.items():
            net, size = np.concatenate(step.net), np.concatenate(step.size)
            self._mixes = len(net) % len(self.where) > 0
            where = np.zeros(1, np.int64) if self._mixes else self.where
            self._rows = len(net) // len(where)
            self._net[t, where], self._size[t, where] = (
                x.reshape(len(where), -1).sum(1) for x in (net, size)
            )
            if self.keep:
                self._settle_counts(t, where, torch.cat(step.counts))
        self._heard.clear()

    def _settle_counts(self, t: int, where: np.ndarray, counts: Tensor) -> None:
        by_sample = counts.unflatten(0, (len(where), -1))
        if self._counts is None:
            samples = 1 if self._mixes else self.samples
            self._counts = by_sample.new_zeros(len(self._net), samples, *by_sample.shape[1:])
        self._counts[t, torch.from_numpy(where)] = by_sample

    def read(self, timesteps: int) -> Spikes:
        """What was sent in the first `timesteps` steps."""
        net, size = (x[:timesteps, : 1 if self._mixes else None] for x in (self._net, self._size))
        positive, negative = (torch.from_numpy((size + sign * net) // 2) for sign in (1, -1))
        counts = None if self._counts is None else self._counts[:timesteps].flatten(1, 2)
        rows = self._rows if not self._mixes else self._rows / self.samples
        return Spikes(round(self._per_row * rows), positive, negative, counts)


@dataclass
class _Step:
    """What a recorder heard of one step: sums of k and |k| and counts, some rows at a time."""

    net: list[np.ndarray] = field(default_factory=list)
    size: list[np.ndarray] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)


def _whole(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.int64)
