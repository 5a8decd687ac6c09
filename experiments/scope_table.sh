#!/bin/sh
# The table scope x correction of docs/results/scopes.md, on one thread.
#   sh experiments/scope_table.sh [SCOPE ...]     writes runs/scope_table/SCOPE.EDITOR, resumes
# The scopes' states are prepared once: runs/scope_states. `dualedit` learns a threshold only, so its
# adapter is trained for a few steps.
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
states=runs/scope_states
prepare() { # NAME OPTION ...
  name=$1
  shift
  test -f "$states/$name/state.json" ||
    "$errata" prepare micro-vlm "$@" --benchmark microworld:vqa@train --seed 0 --out "$states/$name"
}
for scope in ${*:-none knn dualedit testimony oracle trained}; do
  case $scope in
    none) with= ;;
    dualedit) prepare dualedit --editor dualedit --set steps=10
      with="--scope dualedit --scope-state $states/dualedit" ;;
    trained) prepare serac --editor serac
      with="--scope trained --scope-state $states/serac" ;;
    testimony) prepare testimony --scope testimony
      with="--scope testimony --scope-state $states/testimony" ;;
    *) with="--scope $scope" ;;
  esac
  for editor in ft_l tpatcher lora ft_v memit unike; do
    # 2: refused, as ft_v is behind a scope that reads a block
    "$errata" bench micro-vlm --editor "$editor" $with --benchmark microworld:vqa \
      --protocol one_step --limit 100 --out "runs/scope_table/$scope.$editor" || test $? = 2
  done
done
