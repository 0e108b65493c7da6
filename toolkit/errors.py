"""The exception root of the whole toolkit."""


class ToolkitError(Exception):
    """Root of every error that the toolkit raises on purpose.

    The message is one line: what, got, expected, what to do. The command line prints it and exits
    non-zero.
    """


class FileError(ToolkitError):
    """A file or folder is not there, is somebody else's, or may not be written."""


class SettingsError(ToolkitError):
    """A setting is unknown, ill-typed or out of range."""
