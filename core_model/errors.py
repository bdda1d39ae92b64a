"""Mistakes of the user's that the model code finds."""

from __future__ import annotations

from mpi.errors import UserError


class ModelError(UserError, ValueError):
    """One line that names the thing (preset, weights file, category ...) and the remedy; commands exit with 2."""
