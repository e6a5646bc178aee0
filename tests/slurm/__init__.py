"""Tests against a real Slurm: two nodes with accounting on this host."""
