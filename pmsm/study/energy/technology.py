"""What one operation costs: technologies, memories and conventions, as data with their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pmsm.errors import SettingsError

HOROWITZ = (
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, doi "
    "10.1109/ISSCC.2014.6757323: 45 nm, 0.9 V"
)
LOIHI = (
    "M. Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, IEEE Micro 38(1), "
    "2018, doi 10.1109/MM.2018.112130359: 14 nm"
)
POLYNOMIAL = 4
"""Assumed: a function (exp, erf, root, division) costs as many MACs as a polynomial of that degree."""


@dataclass(frozen=True)
class Technology:
    """What one operation costs, in pJ, and how wide its numbers are, in bytes.

    Args:
        mac_pj: a multiplication and the addition behind it.
        ac_pj: an addition that a spike causes, of one weight to one potential.
        add_pj: any other addition, or a comparison.
        multiply_pj: a multiplication alone.
        function_pj: one value of exp, erf, a root or a division.
        update_pj: one neuron in one step, whatever it does; None: its additions and comparisons are counted.
        weight_bytes, state_bytes, value_bytes: a weight, a membrane potential, an analog value in memory.
        memory: whether memory can be charged on top; False where the figures contain it.
        source: where the figures are from, and which of them are assumptions.
    """

    name: str
    mac_pj: float
    ac_pj: float
    add_pj: float
    multiply_pj: float
    function_pj: float
    source: str
    update_pj: float | None = None
    weight_bytes: int = 4
    state_bytes: int = 4
    value_bytes: int = 4
    memory: bool = True

    def __post_init__(self) -> None:
        costs = (
            self.mac_pj,
            self.ac_pj,
            self.add_pj,
            self.multiply_pj,
            self.function_pj,
            self.update_pj or 0,
        )
        if not all(0 <= cost < float("inf") for cost in costs):
            raise SettingsError(f"Technology needs finite costs >= 0, got {self}.")


def _arithmetic(
    name: str, multiply: float, add: float, widths: tuple[int, int, int], what: str
) -> Technology:
    """A technology of plain multipliers and adders."""
    weight_bytes, state_bytes, value_bytes = widths
    mac = round(multiply + add, 6)
    return Technology(
        name,
        mac_pj=mac,
        ac_pj=add,
        add_pj=add,
        multiply_pj=multiply,
        function_pj=POLYNOMIAL * mac,
        source=f"{HOROWITZ}; {what}. Assumed: {POLYNOMIAL} MACs per function",
        weight_bytes=weight_bytes,
        state_bytes=state_bytes,
        value_bytes=value_bytes,
    )


TECHNOLOGIES: dict[str, Technology] = {
    t.name: t
    for t in (
        _arithmetic("45nm-fp32", 3.7, 0.9, (4, 4, 4), "32-bit float multiply 3.7 pJ, add 0.9 pJ"),
        _arithmetic("45nm-fp16", 1.1, 0.4, (2, 2, 2), "16-bit float multiply 1.1 pJ, add 0.4 pJ"),
        _arithmetic(
            "45nm-int8", 0.2, 0.03, (1, 4, 1),
            "8-bit integer multiply 0.2 pJ, add 0.03 pJ, which takes accumulators to be 8 bits wide as well",
        ),
        _arithmetic(
            "45nm-int8-acc32", 0.2, 0.1, (1, 4, 1),
            "8-bit integer multiply 0.2 pJ, 32-bit integer add 0.1 pJ",
        ),
        Technology(
            "loihi", mac_pj=23.6, ac_pj=23.6, add_pj=0.0, multiply_pj=23.6, function_pj=POLYNOMIAL * 23.6,
            update_pj=81.0, weight_bytes=1, value_bytes=1, memory=False,
            source=f"{LOIHI}, figures from simulation before silicon: 23.6 pJ at least per synaptic spike "
            f"operation, 81 pJ per update of an active neuron (52 pJ inactive, not used). Assumed: the chip "
            f"does no MAC, one is priced as a synaptic operation, {POLYNOMIAL} per function; other additions "
            f"belong to the neuron update",
        ),
    )
}  # fmt: skip
"""Name -> figures. They were checked against works that quote the sources, not against the sources
themselves, which are not public.
"""


@dataclass(frozen=True)
class Memory:
    """What one byte costs on its way to or from a memory, in pJ."""

    name: str
    pj_per_byte: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.pj_per_byte < float("inf"):
            raise SettingsError(f"Memory needs a finite cost >= 0, got {self}.")


MEMORIES: dict[str, Memory] = {
    m.name: m
    for m in (
        Memory("sram-8k", 10 / 8, f"{HOROWITZ}; 8 KiB cache, 10 pJ per 64 bits"),
        Memory("sram-32k", 20 / 8, f"{HOROWITZ}; 32 KiB cache, 20 pJ per 64 bits"),
        Memory("sram-1m", 100 / 8, f"{HOROWITZ}; 1 MiB cache, 100 pJ per 64 bits"),
        Memory("dram", 1300 / 8, f"{HOROWITZ}; DRAM, 1.3 to 2.6 nJ per 64 bits, the lower end"),
    )
}
"""Name -> cost per byte."""

CONVENTIONS: dict[str, str] = {
    "unary": "a count k is |k| spikes, one accumulate per spike and synapse",
    "events": "one accumulate per nonzero count and synapse, however large the count: optimistic",
    "graded": "one multiply-accumulate per nonzero count and synapse: the count multiplies the weight",
}
"""Name -> what a signed count k costs at each synapse that it reaches."""


Choice = TypeVar("Choice")


def chosen(table: Mapping[str, Choice], wanted: Any, kind: type[Choice]) -> Choice:
    """An entry of `table` by its name, or an object of the user's own.

    Raises:
        SettingsError: neither.
    """
    if isinstance(wanted, kind):
        return wanted
    if not isinstance(wanted, str) or wanted not in table:
        raise SettingsError(
            f"measure needs a {kind.__name__.lower()} out of {', '.join(map(repr, table))}, or a "
            f"{kind.__name__} of your own, got {wanted!r}."
        )
    return table[wanted]
