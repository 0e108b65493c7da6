"""The exception root of the deploy package."""

from toolkit.errors import SettingsError, ToolkitError


class DeployError(ToolkitError):
    """Root of the errors of the robot side."""


class ConnectionLost(DeployError):
    """The KOS server is not there, went away, or does not answer in time."""


class FaultError(DeployError):
    """The robot answered, and what it said forbids going on."""


class SafetyError(DeployError):
    """A command did not pass through the safety layer, or a state forbids starting."""


class PolicyError(DeployError):
    """A policy's graph is not what its bundle says, or gave a non-finite action."""


class LogError(DeployError):
    """A log cannot be written or read."""


class CheckError(DeployError):
    """The bundle, the robot and the command line do not fit together."""


class OptionError(CheckError, SettingsError):
    """An option of a run is out of its bounds."""
