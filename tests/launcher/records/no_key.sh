#!/bin/bash

# Parameters
#SBATCH --job-name=run
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/my runs/run/slurm/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@5

# setup

# each node runs: '/opt/py env/bin/python' -m llava.agent -- -m llava.train --config '/shared/my runs/run/config.yaml'
# with
#   SITE='it'"'"'s here'
# One turn is one attempt: begin numbers it and chooses address and port, settle says what follows.
while attempt=$('/opt/py env/bin/python' -m launcher.backends.slurm.batch begin '/shared/my runs/run' train) && eval "$attempt"; do

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/my runs/run/slurm/%j_%t_log.out' --export=ALL --kill-on-bad-exit=1 --wait=0 sh -c 'trap "" USR2; exec "$@"' llavajob '/opt/py env/bin/python' -u -m submitit.core._submit '/shared/my runs/run/slurm'


# teardown
eval "$('/opt/py env/bin/python' -m launcher.backends.slurm.batch settle '/shared/my runs/run' train "$?")"
done
exit 1
