"""Plots as SVG text, readable in light and dark and without color vision."""

from pmsm.study.plots.energy import energy_per_operator
from pmsm.study.plots.pareto import accuracy_against_cost
from pmsm.study.plots.raster import spike_raster
from pmsm.study.plots.runs import accuracy_against_timesteps, entropy_per_site, spike_histograms
from pmsm.study.plots.svg import SERIES

__all__ = ["SERIES", "accuracy_against_cost", "accuracy_against_timesteps", "energy_per_operator",
           "entropy_per_site", "spike_histograms", "spike_raster"]  # fmt: skip
