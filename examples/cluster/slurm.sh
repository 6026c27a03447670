#!/usr/bin/env bash
# A Slurm job that goes on until the run is finished:  sbatch examples/cluster/slurm.sh CONFIG [key=value ...]
# Ten minutes before its time is over Slurm sends USR1; the run finishes its update, saves and exits 75, and the job
# queues itself anew. A node that fails is Slurm's to requeue: the run continues from its newest intact checkpoint.
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

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# One task a process and no torchrun between: srun gives back the exit code of the run.
srun --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec python -m pico_train run "$@"' pico "$@"
code=$?

if [ "$code" -eq 75 ]; then
    echo "stopped in good order: queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
