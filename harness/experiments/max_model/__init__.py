"""`harness fit`: the largest model that each engine setting can train."""
