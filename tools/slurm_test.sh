#!/usr/bin/env bash
# Tests on the machines of a Slurm cluster, with MMDetection's convention for calling it.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    usage="tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]"
    echo "error: give a partition, a name for the job, a config and a checkpoint: $usage" >&2
    exit 2
fi

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
read -ra srun_args <<<"${SRUN_ARGS:-}"
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/tools}${PYTHONPATH:+:$PYTHONPATH}"
exec srun --partition="$1" \
    --job-name="$2" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
