"""Another run that stands beside a measurement: at the smallest T at which it is as accurate, nearly."""

from dataclasses import replace
from pathlib import Path

from pmsm.errors import SettingsError
from pmsm.graph import Network
from pmsm.snn.convert import convert
from pmsm.study.demo import WITHIN
from pmsm.study.experiment import evaluate_over_time, load_experiment
from pmsm.study.findings import Watch, unwatched

LONGEST = 32
"""Steps after which a rival that is not accurate enough is given up."""


def accuracy_of(folder: Path, timesteps: int, watch: Watch = unwatched) -> float:
    """Accuracy of the spiking network of a run after so many steps, in percent."""
    return _over_time(folder, timesteps, watch)[1][-1]


def rival(
    folder: Path, accuracy: float, watch: Watch = unwatched, longest: int = LONGEST
) -> tuple[str, Network, int]:
    """Name, spiking network and T of the run in `folder`, to stand beside one of `accuracy` percent.

    T is the smallest at which it is at most `WITHIN` points less accurate; `longest`, and the name tells how
    far it is, where there is none.

    Raises:
        SettingsError: a run on events, whose T is given by its frames.
        CheckpointError: no run in the folder.
    """
    qann, found, method = _over_time(folder, longest, watch)
    reached = [t for t, a in enumerate(found, 1) if a >= accuracy - WITHIN]
    timesteps = reached[0] if reached else longest
    behind = "" if reached else f", {accuracy - found[-1]:.1f} points behind"
    return f"{method} of {folder}, T={timesteps}{behind}", convert(qann), timesteps


def _over_time(folder: Path, timesteps: int, watch: Watch) -> tuple[Network, list[float], str]:
    """Quantized network, accuracy after each step, and what its method is called."""
    experiment, source, qann = load_experiment(folder)
    if source.events is not None:
        raise SettingsError(
            f"the run in {str(folder)!r} is on events: its frames are its timesteps, and none of them is the "
            f"smallest T. Measure it by itself, pmsm measure {folder}, and compare the two."
        )
    watched = replace(source, test=watch(source.test, str(folder)))
    label = experiment.method.upper().replace("QCFS", "QCFS-IF")
    return qann, evaluate_over_time(qann, watched, timesteps)["accuracy"], label
