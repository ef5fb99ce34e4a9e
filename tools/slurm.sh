# Shared by slurm_train.sh and slurm_test.sh: run a tool on a Slurm cluster.
# submit PARTITION JOB_NAME TOOL [arguments of the tool]
submit() {
    local partition=$1 job_name=$2 tool=$3
    local gpus_per_node=${GPUS_PER_NODE:-8} srun_args tools
    read -ra srun_args <<<"${SRUN_ARGS:-}"
    tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    export PYTHONPATH="${tools%/tools}${PYTHONPATH:+:$PYTHONPATH}"
    exec srun --partition="$partition" \
        --job-name="$job_name" \
        --gres="gpu:$gpus_per_node" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="$gpus_per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${srun_args[@]+"${srun_args[@]}"} \
        "${PYTHON:-python}" -u "$tools/$tool" "${@:4}" --launcher slurm
}
