#!/bin/sh
# The runs behind the tables of docs/results/ about micro-vlm, on one thread.
#   sh experiments/results.sh [EDITOR ...]      writes runs/results/EDITOR-TASK-PROTOCOL, resumes unfinished runs
# Trained editors are prepared first, once for both tasks: runs/both/EDITOR.
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
steps() { # updates of the training on both tasks; the best checkpoint of them is kept
  case $1 in
    mend) echo 1000 ;; ke) echo 900 ;; serac) echo 1800 ;; lte) echo 650 ;;
    dualedit) echo 1500 ;; visedit) echo 900 ;;
  esac
}
run() { # NAME EDITOR TASKS PROTOCOL LIMIT [OPTION ...]
  name=$1 editor=$2 tasks=$3 protocol=$4 limit=$5
  shift 5
  "$errata" bench micro-vlm --editor "$editor" --benchmark "microworld:$tasks@eval/v1" \
    --protocol "$protocol" --limit "$limit" --out "runs/results/$name" "$@"
}
protocols() { # ROW EDITOR [OPTION ...]
  row=$1 with=$2
  shift 2
  for task in vqa caption; do
    run "$row-$task-one_step" "$with" "$task" one_step 240 "$@"
    run "$row-$task-sequential" "$with" "$task" sequential:10 200 "$@"
    run "$row-$task-sequential20" "$with" "$task" sequential:20 200 "$@"
  done
  run "$row-cross_task" "$with" vqa+caption cross_task:10 200 "$@"
}
if [ $# = 0 ]; then # trivial editors: where they apply is all that they know
  protocols say.lookup say --scope lookup
  for scope in same_question same_image knn; do
    protocols "ft_l.$scope" ft_l --scope "$scope"
  done
fi
for editor in ${*:-ft_l ft_v lora tpatcher ike unike mend ke serac lte dualedit visedit witness}; do
  state=
  if [ "$editor" = witness ]; then # its scope learns from the same train cases
    state="--state runs/both/witness"
    test -f runs/both/witness/state.json || "$errata" prepare micro-vlm --scope testimony \
      --benchmark microworld:vqa+caption@train/v1 --out runs/both/witness
  fi
  if [ -n "$(steps "$editor")" ]; then
    state="--state runs/both/$editor"
    test -f "runs/both/$editor/state.json" || "$errata" prepare micro-vlm --editor "$editor" \
      --benchmark microworld:vqa+caption@train --set "steps=$(steps "$editor")" --out "runs/both/$editor"
  fi
  protocols "$editor" "$editor" $state
done
