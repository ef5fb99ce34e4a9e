#!/usr/bin/env bash
# Test on several GPUs with torchrun; the arguments are those of MMDetection's script.
set -euo pipefail

if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    usage="tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]"
    echo "error: give a config, a checkpoint and a number of GPUs: $usage" >&2
    exit 2
fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/tools}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m mmcare.cli.launch --nproc-per-node="$3" \
    "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
