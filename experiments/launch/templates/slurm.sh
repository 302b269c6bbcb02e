#!/usr/bin/env bash
# One command on every node, one process a node, which has all GPUs of it: submit with `sbatch --wait`, whose exit status is
# then that of the command. Written by experiments.launch. https://slurm.schedmd.com/sbatch.html
#DIRECTIVES#
set -euo pipefail
#VALUES#

# jax takes one process a GPU for what Slurm does, unless it is told which GPUs are a process's.
export JAX_LOCAL_DEVICE_IDS="$devices"
code=0
# A process may use all processors of its node; when one fails, the others are ended.
srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 "$python" -m "${command[@]}" || code=$?
if [ "$code" = 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$restarts" ]; then
  echo "time is up: saved, and queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until Slurm ends this
fi
exit "$code"
