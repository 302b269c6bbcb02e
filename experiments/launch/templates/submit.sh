#!/usr/bin/env bash
# Submits one Slurm job and waits for it; the exit status is that of the command. Written by experiments.launch.
set -euo pipefail
#VALUES#

job=$(mktemp)
trap 'rm -f "$job"' EXIT
cat > "$job" << 'JOB'
#JOB#
JOB
cd "$from"
echo "log: $from/$name-<job>.log; cancel with scancel --name=$name" >&2
sbatch --wait "$job"
