"""What people read: every table, to the letter."""

import io
import textwrap

import pytest
import torch
from rich.console import Console
from torch import nn

from pmsm.study.energy.measure import measure
from pmsm.study.energy.measurement import Measurement
from pmsm.study.energy.text import GRIDS
from pmsm.study.grid import markdown, plain

# ruff: noqa: E501 -- tables, as they are printed
GOLDEN = {
    "layers": """
        operator  kind               reads         MACs   SOPs     ±  events  MACs left  other  updates    KiB      nJ
        0         Conv2d             analog, once     9                               9                  0.105  0.0414
        1         Neuron             neurons                                                54       18  0.141  0.0486
        2         Conv2d             spikes         162    338  15.8     167                18            3.96   0.320
        3         Neuron             neurons                                               108       36  0.281  0.0972
        4         AdaptiveAvgPool2d  spikes
        6         Linear             spikes           6   64.5  5.63    58.5                 3           0.756  0.0608
        total                                       177  402.5  19.6   225.5          9    183       54   5.24   0.568
    """,
    "firing": """
        neurons  number  spikes     ±  per neuron  negative  silent      1      2      3    4+  saturated  dead
        1             9    31.5  4.35       3.500     52.4%   13.9%  27.8%  27.8%  30.6%  0.0%       0.0%  0.0%
        3            18    21.5  1.88       1.194     25.6%   45.8%  48.6%   5.6%   0.0%  0.0%       0.0%  0.0%
    """,
    "comparison": """
        network        priced at      nJ        ±  nJ / this  break-even rate
        this           45nm-fp32   0.568   0.0176       1.00
        float ANN      45nm-fp32   0.836                1.47            4.166
        int8 QANN      45nm-int8  0.0416                0.07            never
        the same, T=1  45nm-fp32   0.296  0.00987       0.52            0.595
    """,
}

SUMMARY = """
Mode integrate, T=2, 4 samples: 0.568 nJ per sample (63.7% spikes, 10.6% other work, 25.7% neurons); 2.396 accumulates per synapse. Energy of the others / this: float ANN at 45nm-fp32 1.47, int8 QANN at 45nm-int8 0.07, the same, T=1 at 45nm-fp32 0.52. Convention unary: a count k is |k| spikes, one accumulate per spike and synapse. Prices 45nm-fp32: M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, doi 10.1109/ISSCC.2014.6757323: 45 nm, 0.9 V; 32-bit float multiply 3.7 pJ, add 0.9 pJ. Assumed: 4 MACs per function. Memory is not charged. Left out: routing and addressing of spikes, control, clocks, leakage, the sum of the read-out over the steps; in the networks without spikes also biases, and the activations whose place neurons take.
"""

MARKDOWN = """
| network | priced at | nJ | ± | nJ / this | break-even rate |
| --- | --- | ---: | ---: | ---: | ---: |
| this | 45nm-fp32 | 0.568 | 0.0176 | 1.00 |  |
| float ANN | 45nm-fp32 | 0.836 |  | 1.47 | 4.166 |
| int8 QANN | 45nm-int8 | 0.0416 |  | 0.07 | never |
| the same, T=1 | 45nm-fp32 | 0.296 | 0.00987 | 0.52 | 0.595 |
"""


@pytest.fixture
def measured(spiking, told) -> Measurement:
    """Four samples whose spikes are known, at two timesteps, beside the same network at one."""
    ann = told(
        1, nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    )
    with torch.no_grad():
        for parameter in [*ann[2].parameters(), *ann[6].parameters()]:
            parameter.fill_(0.25)
    x = (torch.arange(4 * 9) % 7 - 3).float().view(4, 1, 3, 3)
    snn = spiking(ann, x)
    return measure(snn, x, 2, baselines={"the same, T=1": (snn, 1)})


@pytest.mark.parametrize("name", GRIDS)
def test_a_table(measured, name):
    assert plain(GRIDS[name](measured)) == textwrap.dedent(GOLDEN[name]).strip()


def test_the_summary_names_every_ratio_every_price_and_what_is_left_out(measured):
    assert measured.summary() == SUMMARY.strip()


def test_a_table_of_markdown(measured):
    assert markdown(GRIDS["comparison"](measured)) == MARKDOWN.strip()


def test_printed_it_is_the_tables_and_the_summary(measured):
    whole = str(measured)
    assert whole == "\n\n".join([*(plain(grid(measured)) for grid in GRIDS.values()), measured.summary()])
    assert measured.markdown().endswith(measured.summary())


@pytest.mark.parametrize("name", GRIDS)
def test_a_rich_table_holds_every_cell(measured, name):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(measured.table(name))
    text, grid = console.export_text(), GRIDS[name](measured)
    assert all(cell in text for cell in (*grid.columns, *(cell for row in grid.rows for cell in row)))


def test_memory_is_named_where_it_is_charged(measured):
    charged = measured.priced("45nm-int8", "graded", "sram-32k").summary()
    assert "Memory at 2.5 pJ per byte (M. Horowitz" in charged
    assert "as if nothing were reused, in all networks" in charged
    assert "% memory)" in charged
