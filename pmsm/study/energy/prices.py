"""From counts to picojoules and bytes: three choices, a technology, a convention and perhaps a memory."""

from dataclasses import dataclass
from typing import Any

from pmsm.errors import SettingsError
from pmsm.study.energy.firing import Estimate
from pmsm.study.energy.technology import CONVENTIONS, MEMORIES, TECHNOLOGIES, Memory, Technology, chosen
from pmsm.study.energy.work import Work


@dataclass(frozen=True)
class Traffic:
    """Bytes to and from memory if nothing is reused, by what they hold.

    An accumulate reads a weight, reads and writes a potential; a MAC reads a weight and a value; an update of
    a neuron reads and writes its potential; analog results are written once, and read by what works on them.
    """

    weights: float = 0.0
    states: float = 0.0
    values: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.states + self.values

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.weights + other.weights, self.states + other.states, self.values + other.values)

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.weights * times, self.states * times, self.values * times)


@dataclass(frozen=True)
class Prices:
    """What counts are priced at.

    Raises:
        SettingsError: an unknown convention, or memory on top of figures that contain it.
    """

    technology: Technology
    convention: str = "unary"
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise SettingsError(
                f"measure needs a convention out of {', '.join(map(repr, CONVENTIONS))}, got "
                f"{self.convention!r}."
            )
        if self.memory is not None and not self.technology.memory:
            raise SettingsError(
                f"the figures of {self.technology.name!r} contain its memory: leave memory=None."
            )

    def accumulates(self, synops: Estimate, events: Estimate) -> Estimate:
        """What the convention counts."""
        return synops if self.convention == "unary" else events

    @property
    def accumulate_pj(self) -> float:
        """One accumulate, without memory."""
        return self.technology.mac_pj if self.convention == "graded" else self.technology.ac_pj

    def work_pj(self, work: Work) -> float:
        """Work that no spike causes, without memory."""
        t = self.technology
        return (
            work.macs * t.mac_pj
            + work.multiplies * t.multiply_pj
            + (work.adds + work.comparisons) * t.add_pj
            + work.functions * t.function_pj
        )

    def updates_pj(self, work: Work, updates: int) -> float:
        """Updates of neurons, which are `work` where the technology has no figure for them."""
        per_update = self.technology.update_pj
        return self.work_pj(work) if per_update is None else updates * per_update

    @property
    def accumulate_bytes(self) -> Traffic:
        """Of one accumulate."""
        return Traffic(weights=self.technology.weight_bytes, states=2 * self.technology.state_bytes)

    def work_bytes(self, work: Work, updates: int = 0) -> Traffic:
        """Of work that no spike causes, and of updates."""
        t = self.technology
        return Traffic(
            weights=work.macs * t.weight_bytes,
            states=2 * updates * t.state_bytes,
            values=(work.macs + work.values) * t.value_bytes,
        )

    def memory_pj(self, traffic: Traffic) -> float:
        """What the traffic costs; nothing where memory is not charged."""
        return traffic.total * self.memory.pj_per_byte if self.memory else 0.0

    def dense_pj(self, work: Work) -> float:
        """A network without spikes."""
        return self.work_pj(work) + self.memory_pj(self.work_bytes(work))


def priced_at(technology: Any, convention: str, memory: Any) -> Prices:
    """Prices by name, or of the user's own.

    Raises:
        SettingsError: an unknown name, or memory on top of figures that contain it.
    """
    charged = None if memory is None else chosen(MEMORIES, memory, Memory)
    return Prices(chosen(TECHNOLOGIES, technology, Technology), convention, charged)
