#!/usr/bin/env bash
# Train on several GPUs with torchrun; the arguments are those of MMDetection's script.
set -euo pipefail

if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    usage="tools/dist_train.sh CONFIG GPUS [options of train.py]"
    echo "error: give a config and a number of GPUs: $usage" >&2
    exit 2
fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/tools}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m mmcare.cli.launch --nproc-per-node="$2" \
    "$tools/train.py" "$1" --launcher pytorch "${@:3}"
