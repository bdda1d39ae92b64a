"""Both engines on virtual nodes with limited links."""
