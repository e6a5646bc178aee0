#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --comment='it'"'"'s for "us"'
#SBATCH --constraint='a100&nvlink'
#SBATCH --cpus-per-task=96
#SBATCH --exclude='node[3,9]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:8
#SBATCH --job-name=run
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@example.org
#SBATCH --mem=960G
#SBATCH --nice=100
#SBATCH --nodelist='node[1-4]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-core=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/my runs/run/slurm/%j_0_log.out'
#SBATCH --overcommit
#SBATCH --partition=main,high
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=maintenance
#SBATCH --signal=USR2@5
#SBATCH --switches=1@5:00
#SBATCH --time=2-12:00:00
#SBATCH --wckey=key

# setup
module load gcc/12
module load 'cuda/12.4 beta'
source '/opt/my site/setup.sh'
ulimit -n 65536
set +e

# each node runs: '/opt/py env/bin/python' -m llava.agent -- -m llava.train --config '/shared/my runs/run/config.yaml'
# with
#   SITE='it'"'"'s here'
# One turn is one attempt: begin numbers it and chooses address and port, settle says what follows.
while attempt=$(PYTHON -m launcher.backends.slurm.batch begin '/shared/my runs/run' train) && eval "$attempt"; do

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/my runs/run/slurm/%j_%t_log.out' --kill-on-bad-exit=1 --wait=0 --cpus-per-task=96 --container-image=/images/llava.sqsh '--container-mounts=/data:/my data' sh -c 'trap "" USR2; exec "$@"' llavajob '/opt/py env/bin/python' -u -m submitit.core._submit '/shared/my runs/run/slurm'


# teardown
eval "$(PYTHON -m launcher.backends.slurm.batch settle '/shared/my runs/run' train "$?")"
done
exit 1
