#!/usr/bin/env bash
# Train on several nodes of a Slurm cluster, one task per GPU:
#
#     sbatch launch/slurm.sh model=gpt2 data.path=/shared/prepared run_dir=/shared/runs/gpt2 train.mesh=fsdp
#
# Change the number of nodes and GPUs here or on sbatch's command line. Submit it again to continue the run; after a
# preemption or the failure of a node Slurm does so itself.
#SBATCH --job-name=babyjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# Two minutes before the time is up: the run is saved.
#SBATCH --signal=TERM@120
set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
exec srun --kill-on-bad-exit=1 babyjax train distributed=auto "$@"
