#!/usr/bin/env bash
# Train with several processes on each machine: GPUs, or CPU cores without one.
#
#   bash tools/dist_train.sh CONFIG GPUS [ARGS of tools/train.py]
#
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@"  # sh was called
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,6p' "$0" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$TOOLS/launch_checks.sh" "$2"
export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"
# For the command that continues a training, see tools/train.py
TRAIN_SCRIPT=$(printf '%q ' bash "$0" "$1" "$2")
export TRAIN_SCRIPT
exec "${PYTHON:-python}" "$TOOLS/torchrun.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
