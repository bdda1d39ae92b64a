"""The one error of this package."""

from __future__ import annotations

from mpi.errors import UserError


class DataError(UserError, ValueError):
    """A mistake in the data or in how it was named. One line: the file or option, and the remedy."""
