#!/bin/sh
# The runs behind the tables of docs/results.md, on one thread.
#   sh benchmarks/results.sh [EDITOR ...]      writes runs/results/EDITOR-TASK-PROTOCOL, resumes what is there
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
run() { # NAME EDITOR TASKS PROTOCOL LIMIT [OPTION ...]
  name=$1 editor=$2 tasks=$3 protocol=$4 limit=$5
  shift 5
  "$errata" bench micro-vlm --editor "$editor" --benchmark "microworld:$tasks" \
    --protocol "$protocol" --limit "$limit" --out "runs/results/$name" "$@"
}
for editor in ${*:-ft_l ft_v lora tpatcher ike unike}; do
  for task in vqa caption; do
    run "$editor-$task-one_step" "$editor" "$task" one_step 240
    run "$editor-$task-sequential" "$editor" "$task" sequential:10 200
  done
  case $editor in ft_v | lora) continue ;; esac
  for task in vqa caption; do
    run "$editor-$task-sequential20" "$editor" "$task" sequential:20 200
  done
  run "$editor-cross_task" "$editor" vqa+caption cross_task:10 200
done
