#!/usr/bin/env bash
# Train on several nodes of a SLURM cluster: one torchrun per node, a process per GPU.
#
#   sbatch scripts/slurm_train.sh JetClass ParT full [OPTIONS]
#   sbatch --nodes 4 --gpus-per-node 8 --partition gpu scripts/slurm_train.sh JetClass ParT full
#
# Submit from the root of the repository, on a file system that all nodes see. The arguments are
# those of ./train_JetClass.sh, after its name, or after `own` those of ./train.sh; what sbatch is
# given wins over the lines below.
#
#SBATCH --job-name=jetzoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=48:00:00
#SBATCH --output=slurm-%j.log
set -euo pipefail

if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch $0 JetClass|QuarkGluon|TopLandscape|own [MODEL] [FEATURES] [OPTIONS]" >&2
    exit 2
fi
# SLURM runs a copy of this file from a folder of its own.
cd "$SLURM_SUBMIT_DIR"
script=./train_$1.sh
[[ $1 != own ]] || script=./train.sh
if [[ ! -x $script ]]; then
    echo "There is no $script: submit from the root of the repository, with a known data set." >&2
    exit 2
fi

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export DDP_NNODES=$SLURM_NNODES DDP_NGPUS=${SLURM_GPUS_ON_NODE:-1}
# A port of its own, should another job have the same first node.
export DDP_RDZV=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))
# The number of a node is known only there.
# shellcheck disable=SC2016
srun bash -c 'DDP_NODE_RANK=$SLURM_NODEID exec "$@"' bash "$script" "${@:2}"
