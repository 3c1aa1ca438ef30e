"""Every error this library raises on purpose: one class per verb that can refuse, all under `PMSMError`."""

import importlib
from types import ModuleType


class PMSMError(Exception):
    """Base of all errors of this library; its text says what, where, why and the code that fixes it."""


class SettingsError(PMSMError, ValueError):
    """A setting is outside its range."""


class TraceError(PMSMError):
    """The network cannot be written down as one graph of call sites."""


class QuantizationError(PMSMError):
    """The network has no site to quantize, or holds weights that cannot be quantized."""


class CalibrationError(PMSMError):
    """A site has no step yet, or the calibration batches cannot give one."""


class ConversionError(PMSMError):
    """An operator has no rule that says how it runs over time."""


class SimulationError(PMSMError):
    """The input does not fit the spiking network or the number of timesteps."""


class VerificationError(PMSMError):
    """The spiking network differs from its quantized network at T=1."""


class MeasurementError(PMSMError):
    """The network holds operators that cannot be counted, or there is nothing to measure it on."""


class TrainingError(PMSMError):
    """Training cannot start or cannot go on."""


class CheckpointError(PMSMError):
    """A checkpoint is truncated, foreign, or does not fit the network."""


class DataError(PMSMError):
    """A data set is missing, empty, truncated or of another kind than announced."""


class MissingExtraError(PMSMError, ImportError):
    """A feature needs an optional package that is not installed."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import the optional package `module`, or say which extra of `pmsm` brings it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module!r} is not installed. It comes with an extra: pip install 'pmsm[{extra}]'."
        ) from error
