"""Errors of the training core."""

from toolkit.errors import SettingsError, ToolkitError


class KsimError(ToolkitError):
    """Root of the errors of ksim."""


class ConfigError(KsimError, SettingsError):
    """A configuration does not fit the robot, or names what is not there."""


class CheckpointError(KsimError):
    """A checkpoint cannot be read or does not fit."""


class TrainingError(KsimError):
    """Training cannot go on, for example because a loss is not finite."""


class ReplayError(KsimError):
    """A log of a replay is damaged, is none, or does not fit the data model."""
