"""What is measured for the record of a run: its operators, its energy, and the spikes of one sample."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pmsm.graph import Network
from pmsm.methods.base import Method
from pmsm.snn.simulate import simulate
from pmsm.study.energy.measure import measure
from pmsm.study.energy.measurement import DENSE, Measurement
from pmsm.study.energy.prices import Prices
from pmsm.study.explain import explain

Watch = Callable[[Any, str], Any]
"""(batches, what is done with them) -> the same batches, for instance with a progress bar."""

RASTER_STEPS, RASTER_ROWS = 8, 160
"""Steps of the raster, and about how many neurons it shows in all."""


def unwatched(batches: Any, label: str) -> Any:
    """No progress bar."""
    return batches


def operators_of(ann: nn.Module, example: Tensor, method: Method) -> list[dict[str, Any]]:
    """What became of every operator, in the order of execution."""
    rows = explain(ann, example, method).rows
    return [{"name": r.name, "kind": r.kind, "fate": r.fate, "macs": r.macs} for r in rows]


def energy_of(
    snn: Network, batches: Any, timesteps: Sequence[int], *, stream: bool = False
) -> list[dict[str, Any]]:
    """Energy at each number of steps (per frame of a stream), at the default prices; by operator at the
    first.
    """
    found = [measure(snn, batches, t, stream=stream) for t in timesteps]
    return [energy_row(m, details=i == 0) for i, m in enumerate(found)]


def energy_row(measured: Measurement, *, details: bool) -> dict[str, Any]:
    """A measurement as the record holds it."""
    energy = measured.totals.energy_pj
    row: dict[str, Any] = {
        "timesteps": measured.timesteps, "technology": measured.prices.technology.name,
        "convention": measured.prices.convention, "samples": measured.samples,
        "energy_nj": energy.mean / 1000, "half_width_nj": _known(energy.half_width / 1000),
        "synops": measured.synops.mean,
    }  # fmt: skip
    if details:
        at = {name: Prices(technology) for name, technology in DENSE.items()}
        row["operators"] = [
            {
                "name": r.name, "kind": r.kind, "reads": r.reads, "synops": r.synops.mean,
                "energy_nj": r.energy_pj.mean / 1000,
                "float_nj": at["float ANN"].dense_pj(r.dense) / 1000,
                "int8_nj": at["int8 QANN"].dense_pj(r.dense) / 1000,
            }
            for r in measured.rows
        ]  # fmt: skip
        row["beside"] = [
            {
                "name": b.name, "technology": b.technology, "energy_nj": b.energy_pj.mean / 1000,
                "ratio": b.ratio, "break_even": _known(b.break_even),
            }
            for b in measured.comparison
        ]  # fmt: skip
    return row


def raster_of(snn: Network, sample: Tensor, name: str, *, stream: bool = False) -> dict[str, Any]:
    """Signed counts of some neurons of every layer over time, evenly spaced over the layer.

    Args:
        sample: [1, ...], or [F, 1, ...] of a stream.
    """
    with torch.no_grad():
        run = simulate(snn, sample, 1 if stream else RASTER_STEPS, stream=stream, record="counts")
    per_layer = max(3, min(12, RASTER_ROWS // max(1, len(run.spikes))))
    layers = []
    for layer, spikes in run.spikes.items():
        assert spikes.counts is not None
        counts = torch.as_tensor(spikes.counts).flatten(1)  # [T, neurons]
        shown = torch.linspace(0, counts.shape[1] - 1, min(per_layer, counts.shape[1])).round().long()
        layers.append({"name": layer, "neurons": spikes.neurons, "counts": counts[:, shown].T.tolist()})
    return {"timesteps": run.timesteps, "sample": name, "layers": layers}


def _known(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
