#!/usr/bin/env bash
# Train on several machines by hand. Run this on each of them, with the name of one of them as the first argument and
# their number as the second:
#
#     ./torchrun.sh node1 2 my_book.txt
#
# All need the same text under the same name. The run's folder is written on one machine only: the one that PyTorch
# chooses as rank 0, which prints the progress. With a drive that all see, it does not matter which one that is.
set -euo pipefail
main_node=$1 nodes=$2 text=$3
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
per_node=$((gpus > 0 ? gpus : 1))
launcher=(torchrun --nnodes "$nodes" --nproc-per-node "$per_node" --rdzv-backend c10d
    --rdzv-endpoint "$main_node:29500" --rdzv-id my_book --max-restarts 3)

# Can they reach one another, do they see the same text, how fast is the network?
"${launcher[@]}" -m tiny_gpt doctor --nodes --data "$text"

exec "${launcher[@]}" -m tiny_gpt train "$text" --for 8h --out-dir runs/my_book
