#!/bin/sh
# The ablations of docs/results/unike.md on one thread: Table 4 on eval (its last row is
# runs/results/unike-TASK-one_step), Figure 4 on dev (no setting was chosen by it).
#   sh experiments/unike.sh [table4 fig4a fig4b fig4c]      resumes unfinished runs
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
run() { # NAME BENCHMARK LIMIT [OPTION ...]
  name=$1 benchmark=$2 limit=$3
  shift 3
  "$errata" bench micro-vlm --editor unike --benchmark "$benchmark" --protocol one_step \
    --limit "$limit" --out "runs/unike/$name" "$@"
}
plain="--set zeta=off --set alpha=0.5" # without Sec. 3.3: a fixed alpha, no direction
for part in ${*:-table4 fig4a fig4b fig4c}; do
  case $part in
  table4)
    for task in vqa caption; do
      run "table4-$task-intrinsic" "microworld:$task@eval/v1" 240 --set extrinsic=none --set zeta=off
      run "table4-$task-latent" "microworld:$task@eval/v1" 240 --set intrinsic=false
      run "table4-$task-intrinsic+ike" "microworld:$task@eval/v1" 240 --set extrinsic=prompt --set zeta=off
      run "table4-$task-intrinsic+latent" "microworld:$task@eval/v1" 240 $plain
    done
    ;;
  fig4a)
    for k in 0 5 10 20 40 80; do
      run "fig4a-latent-$k" microworld:vqa@dev/v1 100 $plain --set top=$k
      run "fig4a-prompt-$k" microworld:vqa@dev/v1 100 --set extrinsic=prompt --set zeta=off --set demonstrations=$k
    done
    ;;
  fig4b)
    for alpha in 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 query token; do
      run "fig4b-$alpha" microworld:vqa@dev/v1 100 --set "alpha=$alpha"
    done
    ;;
  fig4c)
    for zeta in off random semantic truthfulness; do
      run "fig4c-$zeta" microworld:vqa@dev/v1 100 --set zeta=$zeta
    done
    ;;
  esac
done
