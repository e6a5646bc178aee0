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
# Set-up lines: one that fails ends the run; one followed by "|| true" does not.
type module >/dev/null 2>&1 || for llavajob_init in "$LMOD_PKG/init/bash" "$MODULESHOME/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh /usr/share/lmod/lmod/init/bash /usr/share/Modules/init/bash /usr/share/modules/init/bash; do
  if [ -r "$llavajob_init" ]; then source "$llavajob_init" && break; fi
done
IFS= read -rd '' llavajob_setup <<'LLAVAJOB_SETUP'
module load gcc/12
module load 'cuda/12.4 beta'
source '/opt/my site/setup.sh'
ulimit -n 65536
LLAVAJOB_SETUP
llavajob_setup_failed() {  # EXIT_CODE LINE
  trap - DEBUG ERR EXIT TERM; set +eu
  eval "$(PYTHON -m launcher.backends.slurm.batch setup '/shared/my runs/run' train "$1" "$2")"
  echo "llavajob: the set-up failed (exit code $1), and that could not be written down" >&2; exit 1
}
llavajob_before_line() {  # LINE
  if (( $1 > 0 && $1 <= 4 )) && [[ $1 != "${llavajob_line-}" ]]; then
    llavajob_line=$1; echo "llavajob: set-up line $1" >&"$llavajob_log"
  fi
}
llavajob_after_error() {  # EXIT_CODE LINE DEPTH
  # Not in sourced files and subshells, and not for a pipeline whose end did not want all of its input (141).
  (( $3 > llavajob_depth || BASH_SUBSHELL || $1 == 141 )) || llavajob_setup_failed "$1" "$2"
}
llavajob_before_exit() {  # EXIT_CODE
  [[ ${llavajob_ended-} ]] || llavajob_setup_failed "$1" "${llavajob_line-0}"
}
[[ $llavajob_setup ]] || llavajob_setup_failed 1 0  # no room for a temporary file
exec {llavajob_log}>&2; echo "llavajob: set-up begins" >&2; llavajob_depth=${#BASH_SOURCE[@]}
trap 'llavajob_after_error $? $((LINENO - llavajob_base)) ${#BASH_SOURCE[@]}' ERR
trap 'llavajob_before_exit $?' EXIT
trap 'llavajob_ended=1; exit 143' TERM
set -o pipefail
llavajob_base=$LINENO; trap 'llavajob_before_line $((LINENO - llavajob_base))' DEBUG; eval $'\n'"$llavajob_setup"$'\n\n:'; trap - DEBUG ERR
set +eu +o pipefail
[[ $(trap -p EXIT) != *llavajob_before_exit* ]] || trap - EXIT
[[ $(trap -p TERM) != *llavajob_ended* ]] || trap - TERM
echo "llavajob: set-up done" >&"$llavajob_log"; exec {llavajob_log}>&-

# each node runs: '/opt/py env/bin/python' -m llava.agent -- -m llava.train --config '/shared/my runs/run/config.yaml'
# with
#   SITE='it'"'"'s here'
# One turn is one attempt: begin numbers it and chooses address and port, settle says what follows.
while attempt=$(PYTHON -m launcher.backends.slurm.batch begin '/shared/my runs/run' train) && eval "$attempt"; do

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/my runs/run/slurm/%j_%t_log.out' --export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=96 --container-image=/images/llava.sqsh '--container-mounts=/data:/my data' sh -c 'trap "" USR2; exec "$@"' llavajob '/opt/py env/bin/python' -u -m submitit.core._submit '/shared/my runs/run/slurm'


# teardown
eval "$(PYTHON -m launcher.backends.slurm.batch settle '/shared/my runs/run' train "$?")"
done
exit 1
