"""Folders of this project."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]  # the folder that holds harness/, backends/, core_model/ and mpi/
SCHEMAS = PROJECT / "harness" / "records" / "schemas"
