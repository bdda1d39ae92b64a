"""One rank of a run: builds, trains, evaluates, writes records."""
