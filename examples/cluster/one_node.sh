#!/usr/bin/env bash
# All devices of this machine:  examples/cluster/one_node.sh CONFIG [key=value ...]
# PROCESSES=2 takes so many; on a machine without accelerators name it, since torchrun would take one a core.
# train.sharding=full shares parameters, gradients and optimizer state out among them, for a model too large for one.
# torchrun reports every exit code but 0 as 1, also 75 (stopped in good order): `pico-train list` tells the two apart.
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${PROCESSES:-auto}" -m pico_train run "$@"
