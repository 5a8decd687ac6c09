#!/bin/sh
# The runs behind docs/results/real-weights.md: SmolLM2-135M in bfloat16, on one thread.
#   sh experiments/real_weights.sh COUNTERFACT.json [EDITOR ...]     writes runs/real/EDITOR-..., resumes
# COUNTERFACT.json: counterfact-edit.json and counterfact-train.json of RECIPE as one list, or ROME's file.
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
facts=$1
shift
bench() { # NAME EDITOR BENCHMARK PROTOCOL LIMIT [OPTION ...]
  name=$1 editor=$2 benchmark=$3 protocol=$4 limit=$5
  shift 5
  "$errata" bench smollm2-135m --dtype bfloat16 --editor "$editor" --benchmark "$benchmark" \
    --protocol "$protocol" --limit "$limit" --metric begins --out "runs/real/$name" "$@"
}
for editor in ${*:-ft_l lora rome memit pmet alphaedit ike}; do
  bench "$editor-one_step" "$editor" "counterfact:$facts@eval/known" one_step 310
  bench "$editor-places" "$editor" places one_step 100
  bench "$editor-sequential100" "$editor" "counterfact:$facts@eval" sequential:100 300
done
