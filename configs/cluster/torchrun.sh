#!/usr/bin/env bash
# Pretrain with torchrun, on one machine or several. All arguments go to lit-ssl fit:
#
#   bash torchrun.sh --config method/simclr --config data/cifar10 --data.root DIR --trainer.default_root_dir runs/one
#   NODES=2 HEAD=node1:29500 bash torchrun.sh ...      the same on each machine, in a folder that they share
#
# A process that dies stops the others, and torchrun starts all of them again from the last whole checkpoint. SIGTERM
# saves and stops. Started again, this script goes on with the newest run of --trainer.default_root_dir (default: runs);
# give each run one of its own.
set -euo pipefail

NODES=${NODES:-1}               # machines
PROCESSES=${PROCESSES:-$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')} # on each: one a GPU
HEAD=${HEAD:-localhost:0}       # host:port of the first machine; 0: any free port, for one machine
RESTARTS=${RESTARTS:-3}         # after failures

# Else processes that are started again may find the addresses of those before them, in the store that all starts share.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" --max-restarts "$RESTARTS" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${RUN_ID:-lit-ssl}" \
  --no-python lit-ssl fit --config trainer/ddp "$@" \
  --trainer.num_nodes "$NODES" --trainer.devices "$PROCESSES" --ckpt_path last
