"""The training loop and its clock."""
