"""The exception root of the robots package."""

from toolkit.errors import SettingsError, ToolkitError


class RobotsError(ToolkitError):
    """Root of the errors of the robots package."""


class SpecError(RobotsError, SettingsError):
    """A specification holds a value that cannot be true."""


class RobotLoadError(RobotsError):
    """A robot folder is missing something or contradicts itself."""


class BundleError(RobotsError):
    """A .kinfer file cannot be read, or may not be written."""


class MirrorError(RobotsError):
    """A robot is not symmetric, or what is asked has no known mirror image."""
