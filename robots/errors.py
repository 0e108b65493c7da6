"""The exception root of the toolkit and of the robots package."""


class ToolkitError(Exception):
    """Root of every error that the toolkit raises on purpose.

    The message is one line: what, got, expected, what to do. The command line prints it and exits
    non-zero.
    """


class RobotsError(ToolkitError):
    """Root of the errors of the robots package."""


class SpecError(RobotsError):
    """A specification holds a value that cannot be true."""


class RobotLoadError(RobotsError):
    """A robot folder is missing something or contradicts itself."""


class BundleError(RobotsError):
    """A .kinfer file cannot be read, or may not be written."""
