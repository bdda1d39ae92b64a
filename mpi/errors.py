"""The base of every error that a user can mend, in every package (this module imports nothing, so that all may)."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the thing and the remedy. The command line shows it and exits with 2.

    Each package derives its own from it: JobError and RecordError (harness), BackendError (backends), ModelError and
    DataError (core_model), LaunchError, HostfileError and others (mpi). A foreign class never counts as one."""
