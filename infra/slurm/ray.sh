#!/bin/bash
# Runs a command of flowmapsr on a Ray cluster that lasts as long as the job. Each node of the job is one of Ray's, and the
# command runs on the first:
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=96 --time=24:00:00 infra/slurm/ray.sh \
#     train flowmapsr-paper --cluster manifest=s3://bucket/set output=/shared/run workers=16
#
# Five minutes before the time limit, and when Slurm preempts the job, the command is told to end: a training saves a checkpoint,
# a dataset keeps what is built. The job goes back into the queue; there it goes on. The partition's GraceTime has to be long
# enough for a checkpoint.
#SBATCH --job-name=flowmapsr-ray
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=flowmapsr-%j.log
#SBATCH --open-mode=append
set -u
[ $# -gt 0 ] || { echo "usage: sbatch ray.sh COMMAND, as after flowmapsr: train RECIPE --cluster ..." >&2; exit 2; }
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS=${RENDEZVOUS_HOST:-$first}:$port
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

start_node() { # on each node
  local options=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --head --port="${RAY_ADDRESS##*:}" --include-dashboard=false "${options[@]}"
  fi
  until ray health-check --address="$RAY_ADDRESS" >/dev/null 2>&1; do sleep 1; done
  exec ray start --address="$RAY_ADDRESS" "${options[@]}"
}
export -f start_node
all_joined='import os, ray
ray.init(logging_level="ERROR")
raise SystemExit(sum(node["Alive"] for node in ray.nodes()) < int(os.environ["SLURM_NNODES"]))'

warned=
trap 'warned=yes; scancel --quiet --signal=TERM "$SLURM_JOB_ID"' TERM USR1

# Slurm tells every process to end. Ray would do so at once, before the training has saved.
srun --kill-on-bad-exit=1 env --block-signal=TERM --block-signal=USR1 bash -c start_node >"flowmapsr-$SLURM_JOB_ID-ray.log" 2>&1 &
nodes=$!
until python -c "$all_joined" 2>/dev/null; do
  kill -0 "$nodes" 2>/dev/null && [ $SECONDS -lt 300 ] ||
    { echo "Ray did not start on all $SLURM_NNODES nodes: see flowmapsr-$SLURM_JOB_ID-ray.log" >&2; exit 1; }
  sleep 1
done

srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" flowmapsr "$@" &
command=$!
code=0
wait "$command" || code=$?
while kill -0 "$command" 2>/dev/null; do # the signal ended `wait`, not the command
  code=0
  wait "$command" || code=$?
done
scancel --quiet --signal=KILL "$SLURM_JOB_ID.0"
wait "$nodes"

# When it preempts, Slurm tells the command itself and not this script.
case $(scontrol show job -o "$SLURM_JOB_ID") in
  *PreemptTime=None*) ;;
  *PreemptTime=*) warned=yes ;;
esac
if [ "$code" != 0 ] && [ -n "$warned" ]; then
  echo "stopped by Slurm: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
