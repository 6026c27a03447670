#!/usr/bin/env bash
# A Slurm job that continues until the run is finished:  sbatch examples/cluster/slurm.sh CONFIG [key=value ...]
# Ten minutes before its time is over, Slurm sends USR1; the run finishes its update, saves and exits 75, and the job
# requeues itself. If a node fails, Slurm requeues the job and the run continues from its newest intact checkpoint.
# A job that was requeued MAX_IDLE times (3) without a newer checkpoint stops. docs/scale.md explains every setting.
#SBATCH --job-name=pico
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# The environment that pico is installed in. A job has none unless the shell that submitted it had activated one.
if [[ -n "${PICO_ENV:-}" ]]; then
    source "$PICO_ENV/bin/activate" || exit 2
fi
python -c 'import pico_train' || { echo "pico_train cannot be imported: set PICO_ENV to its virtual environment"; exit 2; }

# The newest saved step of the run; -1 before its first session.
saved_step() {
    python - "$@" <<'PYTHON'
import json, sys
from pathlib import Path
from pico_train.config import load
from pico_train.run import RunConfig
manifest = load(RunConfig, Path(sys.argv[1]), sys.argv[2:]).layout.manifest
print(json.loads(manifest.read_text())["step"] if manifest.is_file() else -1)
PYTHON
}

# Requeueing without progress would waste the allocation: count the starts that found no newer step than the one before.
progress="pico-$SLURM_JOB_ID.progress"
before=$(saved_step "$@" 2>/dev/null) || before=-1
read -r last idle 2>/dev/null < "$progress" || { last=none; idle=0; }
if [[ "$before" == "$last" ]]; then idle=$((idle + 1)); else idle=0; fi
if ((idle >= ${MAX_IDLE:-3})); then
    echo "step $before is still the newest after $idle requeues: look into the log, then delete $progress and submit again"
    exit 1
fi
echo "$before $idle" > "$progress"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# Logging of NCCL, and the network of NCCL and gloo. On a cluster with several networks, name the fast one:
# IFNAME=ib0 sbatch ...
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
export TORCH_NCCL_TRACE_BUFFER_SIZE="${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}" TORCH_NCCL_DUMP_ON_TIMEOUT=1
if [[ -n "${IFNAME:-}" ]]; then
    export NCCL_SOCKET_IFNAME="$IFNAME" GLOO_SOCKET_IFNAME="$IFNAME"
fi

# One task for each process, without torchrun: srun then returns the exit code of the run. Since Slurm 22.05 srun does not
# take --cpus-per-task from the job; without it every process would get one core.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=300 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec python -m pico_train run "$@"' pico "$@"
code=$?

if [ "$code" -eq 75 ]; then
    echo "stopped in good order: queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
rm -f "$progress"
exit "$code"
