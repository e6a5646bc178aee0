"""The Slurm backend: batch jobs sent through submitit, one task per node, followed through sacct, squeue and files."""
