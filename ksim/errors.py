"""Errors of the training core."""

from toolkit.errors import ToolkitError


class KsimError(ToolkitError):
    """Root of the errors of ksim."""


class ConfigError(KsimError):
    """A configuration key is unknown, ill-typed or out of range."""


class CheckpointError(KsimError):
    """A checkpoint cannot be read or does not fit."""


class TrainingError(KsimError):
    """Training cannot go on, for example because a loss is not finite."""
