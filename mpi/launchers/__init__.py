"""One file a launcher: a pure function from `Plan` to `Launch`."""
