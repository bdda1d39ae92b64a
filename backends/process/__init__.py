"""Which rank a process is, and how it ends."""
