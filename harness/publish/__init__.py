"""What the program writes into results/README.md and README.md."""
