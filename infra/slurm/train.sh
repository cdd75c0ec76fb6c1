#!/bin/bash
# Trains a resolved recipe with one `torchrun` on each node of the job:
#
#   flowmapsr train RECIPE manifest=s3://bucket/set output=/shared/run --dry-run > recipe.yaml
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=96 --time=24:00:00 infra/slurm/train.sh recipe.yaml
#
# Five minutes before the time limit, and when Slurm preempts the job, a checkpoint is saved and the job goes back into the
# queue; there it goes on. The partition's GraceTime has to be long enough for a checkpoint.
#SBATCH --job-name=flowmapsr
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=flowmapsr-%j.log
#SBATCH --open-mode=append
set -u
recipe=${1:?usage: sbatch train.sh RECIPE.yaml, as flowmapsr train ... --dry-run prints it}
head=${RENDEZVOUS_HOST:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280} # for the checkpoint; torchrun's own is 30

warned=
trap 'warned=yes; scancel --quiet --signal=TERM "$SLURM_JOB_ID"' TERM USR1

srun --kill-on-bad-exit=0 torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" \
  -m training.run "$recipe" &
training=$!
code=0
wait "$training" || code=$?
while kill -0 "$training" 2>/dev/null; do # the signal ended `wait`, not the training
  code=0
  wait "$training" || code=$?
done

# When it preempts, Slurm tells the training itself and not this script.
case $(scontrol show job -o "$SLURM_JOB_ID") in
  *PreemptTime=None*) ;;
  *PreemptTime=*) warned=yes ;;
esac
if [ "$code" != 0 ] && [ -n "$warned" ]; then
  echo "stopped by Slurm: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
