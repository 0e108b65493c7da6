"""The exception root of the robots package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import SettingsError, ToolkitError

if TYPE_CHECKING:
    from robots.problems import Problem


class RobotsError(ToolkitError):
    """Root of the errors of the robots package."""


class SpecError(RobotsError, SettingsError):
    """A specification holds a value that cannot be true."""


class RobotLoadError(RobotsError):
    """A robot folder is missing something or contradicts itself.

    Attributes:
        problems: what, as values; empty where there is only the text.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class BundleError(RobotsError):
    """A .kinfer file cannot be read, or may not be written."""


class MirrorError(RobotsError):
    """A robot is not symmetric, or what is asked has no known mirror image."""
