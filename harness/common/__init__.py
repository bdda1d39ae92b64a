"""Small helpers that every folder of the harness may use: numbers as text, tables, colours, paths."""
