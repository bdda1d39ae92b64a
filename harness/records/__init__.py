"""What a run leaves behind: its files, how they are written and read, and what makes two runs comparable."""
