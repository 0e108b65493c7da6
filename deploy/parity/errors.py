"""Errors of a comparison."""

from __future__ import annotations

from deploy.errors import DeployError


class ParityError(DeployError):
    """A log does not hold what a comparison needs."""
