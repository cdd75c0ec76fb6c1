#!/bin/bash
# Builds a dataset for each line of a file, each a job of an array. A line holds what follows `flowmapsr dataset build`:
#
#   flowmapsr-small sources=[s3://bucket/2025] output=s3://bucket/set-2025
#   flowmapsr-small sources=[s3://bucket/2026] output=s3://bucket/set-2026
#
#   sbatch --array=1-2 --cpus-per-task=32 infra/slurm/datasets.sh lines.txt
#
# A job that is stopped goes on where it was when it is started again.
#SBATCH --job-name=flowmapsr-dataset
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --output=flowmapsr-dataset-%A_%a.log
#SBATCH --open-mode=append
set -eu
line=$(sed -n "${SLURM_ARRAY_TASK_ID:?start it with sbatch --array=1-N}p" "${1:?usage: sbatch --array=1-N datasets.sh LINES}")
[ -n "$line" ] || { echo "$1 has no line $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
eval "set -- $line" # as a shell reads the line, with quotes and variables
exec srun flowmapsr dataset build "$@" workers="${SLURM_CPUS_PER_TASK:-1}"
