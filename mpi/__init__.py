"""Hosts and processes: hostfile, launch commands over MPI, ssh and Slurm, virtual nodes, collectives."""
