"""The exception root of the export package."""

from toolkit.errors import ToolkitError


class ExportError(ToolkitError):
    """A policy cannot be exported, or its export is not the policy."""
