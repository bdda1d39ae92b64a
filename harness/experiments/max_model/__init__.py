"""The largest model that each engine setting can train."""
