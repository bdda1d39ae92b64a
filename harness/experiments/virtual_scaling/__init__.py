"""`harness nodes scaling`: both engines on virtual nodes with limited links."""
