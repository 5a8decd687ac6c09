#!/bin/sh
# The runs behind the tables of docs/results.md: five editors, two tasks, two protocols, on one thread.
#   sh benchmarks/results.sh [TASK ...]        writes runs/results/EDITOR-TASK-PROTOCOL, resumes what is there
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
for task in ${*:-vqa caption}; do
  for editor in ft_l ft_v lora tpatcher ike; do
    "$errata" bench micro-vlm --editor "$editor" --benchmark "microworld:$task" \
      --protocol one_step --limit 240 --out "runs/results/$editor-$task-one_step"
    "$errata" bench micro-vlm --editor "$editor" --benchmark "microworld:$task" \
      --protocol sequential:10 --limit 200 --out "runs/results/$editor-$task-sequential"
  done
done
