"""Slurm clusters: what a session there is made of."""
