"""Sub-commands of `harness` that are no part of the library, one file each."""
