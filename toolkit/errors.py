"""The exception root of the whole toolkit."""


class ToolkitError(Exception):
    """Root of every error that the toolkit raises on purpose.

    The message is one line: what, got, expected, what to do. The command line prints it and exits
    non-zero.
    """


class FileError(ToolkitError):
    """A file or folder is not there, is somebody else's, or may not be written."""


class SettingsError(ToolkitError):
    """A setting is unknown, ill-typed or out of range.

    Attributes:
        problem: what is wrong, without the key.
        key: the dotted key from where the error was raised; empty where it is about no key.
    """

    def __init__(self, problem: str, *, key: str = "", noun: str = "") -> None:
        """`noun` stands before the key in the message: "configuration key "."""
        super().__init__(f"{noun}{key}: {problem}" if key else problem)
        self.problem = problem
        self.key = key
