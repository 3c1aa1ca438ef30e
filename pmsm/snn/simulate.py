"""Run an SNN over T timesteps, on one input or on a stream of frames, step by step or layer by layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import SimulationError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.snn.frames import Ending, Frames, Until
from pmsm.snn.run import Run
from pmsm.snn.state import Opened, each, opened

STEPS_AT_ONCE = 32
"""A batch smaller than this may still be run layer by layer for so many steps: memory for 32 samples."""


def simulate(
    snn: Network,
    x: Any,
    timesteps: int = 1,
    *,
    stream: bool = False,
    reset_each_frame: bool = False,
    lengths: Tensor | None = None,
    until: Until | None = None,
    record: str | None = "spikes",
    schedule: str = "auto",
) -> Run:
    """Run `snn` over time: on one input for T timesteps, or on a stream of frames.

    Args:
        snn: spiking network from `convert`; left as it was found, also when the run is interrupted.
        x: [N, ...] input, presented at every step; a tuple for several inputs. With `stream`, [F, N, ...]:
            frame after frame, and T = F * timesteps.
        timesteps: steps per frame, at least 1.
        stream: the first dimension of x is time; state is carried from frame to frame. In integrate mode the
            read-out is the mean over the steps so far; in tracking mode only what changes between frames is
            sent, and the read-out follows the frame.
        reset_each_frame: forget all potentials at each new frame; in integrate mode with timesteps=1 the
            read-out is then the quantized network's, averaged over the frames.
        lengths: [N], whole numbers from 1 to F: how many frames of each sample count.
        until: stop each sample at its first step of softmax confidence >= `until` (a number in (0, 1], for
            read-outs [N, classes]), or where a function of the read-out gives True ([n], bool, for the
            samples still running). A sample that stopped costs nothing any more.
        record: "spikes" counts them per layer, step and sample; "counts" keeps every signed count as well
            (memory grows with T and network size); None records nothing.
        schedule: "steps" runs the whole batch step by step; "layers" runs N / T samples at a time, all their
            steps in one batch, so that potentials stay in the cache. The same numbers, up to the rounding of
            layers whose kernels depend on the batch. "auto" takes "layers" where it serves and needs memory
            for no more than max(N, `STEPS_AT_ONCE`) samples.

    Returns:
        Run with the read-out after each step and the spikes.

    Raises:
        SimulationError: not a spiking network, T < 1, NaN or Inf in the input, an input that the network
        refuses, a network that is running already.
    """
    frames = Frames(tuple(x) if isinstance(x, tuple | list) else (x,), timesteps, stream, reset_each_frame)
    check_network(snn)
    frames.check()
    check_choices(record, schedule)
    ending = Ending.of(frames, lengths, until)
    in_layers = _in_layers(snn, frames, ending, schedule)
    with torch.no_grad(), opened(snn) as state:
        state.listen(record, frames.timesteps, frames.samples)
        run = _by_layers(snn, frames, state) if in_layers else _by_steps(snn, frames, state, ending)
        outputs, steps = run
        spikes = state.read(int(steps.max()))
    micro_steps = snn.meta.get("micro_steps", 1)
    return Run(outputs, int(steps.max()), frames.samples, steps, spikes, micro_steps)


def _in_layers(snn: Network, frames: Frames, ending: Ending | None, schedule: str) -> bool:
    """Whether to run all steps of a layer before the next layer."""
    batch_first = snn.meta["batch_first"]
    mixed = (
        "in dimension 0 of every signal, and something in this network moves the batch, mixes it or may do so"
    )
    if ending is not None and not batch_first:
        raise SimulationError(
            f"lengths and until need each sample {mixed}. Run the samples one by one, or all to the end."
        )
    step_wise = ending is not None or (frames.reset and frames.frames > 1)
    if schedule == "layers" and not batch_first:
        raise SimulationError(f"schedule 'layers' needs each sample {mixed}. Use 'steps' or 'auto'.")
    if schedule == "layers" and step_wise:
        raise SimulationError(
            "schedule 'layers' runs all samples to the end, and all frames as one: it cannot serve lengths, "
            "until or reset_each_frame. Use schedule='steps' or 'auto'."
        )
    if step_wise or frames.timesteps == 1 or schedule == "steps":
        return False
    bounded = frames.timesteps <= max(frames.samples, STEPS_AT_ONCE)
    return schedule == "layers" or (batch_first and snn.meta["mode"] == "integrate" and bounded)


def _by_steps(snn: Network, frames: Frames, state: Opened, ending: Ending | None) -> tuple[Any, Tensor]:
    """[T, N, ...] read-outs and [N] steps; the whole batch, one step after the other."""
    active = torch.arange(frames.samples, device=frames.tensors[0].device)
    steps = torch.full((frames.samples,), frames.timesteps)
    everyone, total, outputs = True, None, []
    for t in range(frames.timesteps):
        if t == 0 or (frames.reset and t % frames.per_frame == 0):
            state.start(
                1, keep=frames.timesteps > 1 and not (frames.reset and frames.per_frame == 1), first=t
            )
        y = state.forward(frames.at(t, None if everyone else active))
        total, output = read_out(snn, y, total, t + 1)
        outputs.append(output if everyone else each(_put(active), output, outputs[-1]))
        if ending is None:
            continue
        stops = ending.stops(t + 1, output, active)
        if bool(stops.any()):
            steps[active[stops].cpu()] = t + 1
            going, everyone = ~stops, False
            active, total = active[going], each(lambda x, going=going: x[going], total)
            if not len(active):
                break
            state.keep(going, active)
    return each(lambda *ys: torch.stack(ys), *outputs), steps


def _put(active: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The read-outs of the samples still running into those of the step before."""
    return lambda now, before: before.index_copy(0, active, now)


def _by_layers(snn: Network, frames: Frames, state: Opened) -> tuple[Any, Tensor]:
    """[T, N, ...] read-outs and [N] steps; some samples at a time, all steps of a layer before the next
    layer.
    """
    timesteps = frames.timesteps
    at_once = max(1, frames.samples // timesteps)
    outputs = None
    for first in range(0, frames.samples, at_once):
        rows = slice(first, min(first + at_once, frames.samples))
        state.start(timesteps, keep=True, samples=rows)
        here = _read_outs(snn, state.forward(frames.all_steps(rows)), timesteps)
        if outputs is None:  # room for all: small results of each pass between its tensors split the heap
            outputs = each(lambda y: y.new_empty(timesteps, frames.samples, *y.shape[2:]), here)
        each(lambda y, all_, rows=rows: all_[:, rows].copy_(y), here, outputs)
    return outputs, torch.full((frames.samples,), timesteps)


def _read_outs(snn: Network, y: Any, timesteps: int) -> Any:
    """[T * n, ...] what left the network -> [T, n, ...] the read-outs after each step."""
    by_step, total, outputs = each(lambda y: y.unflatten(0, (timesteps, -1)), y), None, []
    for t in range(timesteps):
        total, output = read_out(snn, each(lambda y, t=t: y[t], by_step), total, t + 1)
        outputs.append(output)
    return each(lambda *ys: torch.stack(ys), *outputs)


def read_out(snn: Network, y: Any, total: Any, t: int) -> tuple[Any, Any]:
    """Sum over the steps so far, and the read-out after step `t` (from 1); in tracking mode sums travel."""
    if snn.meta["mode"] != "integrate":
        return y, y
    total = y if total is None else each(lambda a, b: b + a if a.is_floating_point() else a, y, total)
    return total, each(lambda x: x / t if t > 1 and x.is_floating_point() else x, total)


def check_network(snn: Network) -> None:
    """Refuse what cannot be simulated.

    Raises:
        SimulationError: it is no converted network.
    """
    spiking = isinstance(snn, Network) and "mode" in snn.meta
    if not spiking or any(True for _ in graph.modules(snn, Quantizer)):
        raise SimulationError(
            f"simulate needs a spiking network, got {type(snn).__name__}. Call snn = pmsm.convert(qann) "
            f"first."
        )


def check_choices(record: str | None, schedule: str) -> None:
    """Refuse a word that means nothing.

    Raises:
        SimulationError: names the words there are.
    """
    if record not in ("spikes", "counts", None):
        raise SimulationError(f"simulate needs record 'spikes', 'counts' or None, got {record!r}.")
    if schedule not in ("auto", "layers", "steps"):
        raise SimulationError(f"simulate needs schedule 'auto', 'layers' or 'steps', got {schedule!r}.")
