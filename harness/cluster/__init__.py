"""Machines: finding what is wrong with them, virtual ones, job scripts for Slurm and Kubernetes."""
