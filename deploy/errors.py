"""The exception root of the deploy package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.errors import SettingsError, ToolkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.robot.faults import Fault


class DeployError(ToolkitError):
    """Root of the errors of the robot side."""


class ConnectionLost(DeployError):
    """The KOS server is not there, went away, or does not answer in time."""


class FaultError(DeployError):
    """The robot answered, and what it said forbids going on.

    Attributes:
        faults: what was seen, as values; empty where there is only the text.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


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
