"""Another run that stands beside a measurement: at the smallest T at which it is as accurate, nearly."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pmsm.errors import SettingsError
from pmsm.graph import Network
from pmsm.methods import METHODS
from pmsm.snn.convert import convert
from pmsm.study.demo import WITHIN
from pmsm.study.experiment import evaluate_over_time, load_experiment
from pmsm.study.findings import Watch, unwatched

LONGEST = 32
"""Steps after which a rival that is not accurate enough is given up."""


class Standing(NamedTuple):
    """A run after some steps: what it is called, its network, its data, and its accuracy after each step."""

    label: str
    qann: Network
    data: str
    accuracy: list[float]


def standing(folder: Path, timesteps: int, watch: Watch = unwatched) -> Standing:
    """How accurate the spiking network of a run is after each of so many steps, in percent.

    Raises:
        SettingsError: a run on events, whose T is given by its frames.
        CheckpointError: no run in the folder.
    """
    experiment, source, qann = load_experiment(folder)
    if source.events is not None:
        raise SettingsError(
            f"the run in {str(folder)!r} is on events: its frames are its timesteps, and none of them is the "
            f"smallest T. Measure it by itself, pmsm measure {folder}, and compare the two."
        )
    watched = replace(source, test=watch(source.test, str(folder)))
    label = f"{METHODS[experiment.method].label} of {folder}"
    return Standing(label, qann, source.name, evaluate_over_time(qann, watched, timesteps)["accuracy"])


def rival(
    own: Standing, folder: Path, watch: Watch = unwatched, longest: int = LONGEST
) -> tuple[str, Network, int]:
    """Name, spiking network and T of the run in `folder`, to stand beside `own` after its last step.

    T is the smallest at which it is at most `WITHIN` points less accurate; `longest`, and the name tells how
    far it is, where there is none.

    Raises:
        SettingsError: a run on other data, or on events.
        CheckpointError: no run in the folder.
    """
    other = standing(folder, longest, watch)
    if other.data != own.data:
        raise SettingsError(
            f"the run in {str(folder)!r} is on {other.data}, this one on {own.data}: their energies cannot "
            f"stand beside each other. Give a run on the same data, --beside RUN."
        )
    goal = own.accuracy[-1]
    reached = [t for t, a in enumerate(other.accuracy, 1) if a >= goal - WITHIN]
    timesteps = reached[0] if reached else longest
    behind = "" if reached else f", {goal - other.accuracy[-1]:.1f} points behind"
    return f"{other.label}, T={timesteps}{behind}", convert(other.qann), timesteps
