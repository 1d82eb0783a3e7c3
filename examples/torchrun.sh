#!/usr/bin/env bash
# Runs `gdfq quantize` on several processes, which train as one, and resumes an interrupted run.
#
#   examples/torchrun.sh 2 runs/two --recipe fashion-mnist-resnet20
#   NODES=4 HOST=first-machine:29500 examples/torchrun.sh 8 runs/all --recipe my.toml --batch-size 512
#
# Arguments: the number of processes on this machine, one per GPU or per few cores; the run's
# folder, which all machines must see; options of `gdfq quantize`. The total number of
# processes must divide --batch-size. On several machines, start the script on each of them.
set -euo pipefail

if (($# < 2)); then
  echo "usage: $0 PROCESSES FOLDER [OPTION OF gdfq quantize ...]" >&2
  exit 2
fi
processes=$1 folder=$2
shift 2

if [[ -f $folder/recipe.toml ]]; then
  arguments=(--resume "$folder") # with its own recipe
else
  arguments=(--out "$folder" "$@")
fi

launch=(--nproc-per-node "$processes")
if [[ -n ${HOST:-} ]]; then
  launch+=(--nnodes "${NODES:-1}" --rdzv-backend c10d --rdzv-endpoint "$HOST")
else
  launch+=(--standalone)
fi

# On CPUs each process gets an equal share of the cores; on GPUs a few are enough.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
exec "${PYTHON:-python}" -m torch.distributed.run "${launch[@]}" -m gdfq quantize "${arguments[@]}"
