"""From a checkpoint, or any JAX policy, to a .kinfer bundle with proof. Heavy imports happen in the modules."""

from export.errors import ExportError

__all__ = ["ExportError"]
