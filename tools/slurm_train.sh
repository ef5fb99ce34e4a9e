#!/usr/bin/env bash
# Train on a Slurm cluster; the arguments are those of MMDetection's script.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    usage="tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]"
    echo "error: give a partition, a name for the job, a config and a work folder: $usage" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
submit "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
