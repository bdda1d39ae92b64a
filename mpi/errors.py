"""The base of every error here that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the thing and the remedy. The command line shows it and exits with 2."""
