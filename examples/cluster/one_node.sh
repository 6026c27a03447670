#!/usr/bin/env bash
# Train on all devices of this machine:  examples/cluster/one_node.sh CONFIG [key=value ...]
# PROCESSES=2 starts two processes. Set it on a machine without accelerators: torchrun would start one for each core.
# train.sharding=full shards parameters, gradients and optimizer state, for a model too large for one device.
# torchrun reports every non-zero exit code as 1, even 75 (stopped by a signal): `pico-train list` shows which it was.
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${PROCESSES:-auto}" -m pico_train run "$@"
