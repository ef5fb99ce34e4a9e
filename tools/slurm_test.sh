#!/usr/bin/env bash
# Test on a Slurm cluster; the arguments are those of MMDetection's script.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    usage="tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]"
    echo "error: give a partition, a name for the job, a config and a checkpoint: $usage" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
submit "$1" "$2" test.py "$3" "$4" "${@:5}"
