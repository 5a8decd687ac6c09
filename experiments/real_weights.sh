#!/bin/sh
# The runs behind docs/results/real-weights.md: SmolLM2-135M and pocket-vlm in bfloat16, one thread.
#   sh experiments/real_weights.sh COUNTERFACT.json [EDITOR ...]      writes runs/real/..., resumes
# COUNTERFACT.json: counterfact-edit.json and counterfact-train.json of RECIPE as one list (20,000 records).
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
facts=$1
shift
bench() { # MODEL NAME EDITOR BENCHMARK PROTOCOL LIMIT [OPTION ...]
  model=$1 name=$2 editor=$3 benchmark=$4 protocol=$5 limit=$6
  shift 6
  "$errata" bench "$model" --dtype bfloat16 --editor "$editor" --benchmark "$benchmark" \
    --protocol "$protocol" --limit "$limit" --metric begins --out "runs/real/$name" "$@"
}
dev() { # NAME EDITOR [OPTION ...]
  name=$1 editor=$2
  shift 2
  bench smollm2-135m "dev/$name" "$editor" "counterfact:$facts@dev/known" one_step 60 "$@"
}
dev memit memit
dev memit-300 memit --set mom2_weight=300
dev memit-L1-5 memit --set layers=[1,2,3,4,5]
dev memit-L5-9 memit --set layers=[5,6,7,8,9]
dev memit-clamp1 memit --set clamp=1.0
dev memit-clamp16 memit --set clamp=16.0
dev memit-kl0 memit --set kl_factor=0.0
dev memit-kl0-L1-5 memit --set kl_factor=0.0 --set layers=[1,2,3,4,5]
bench smollm2-135m one_step/memit-kl0 memit "counterfact:$facts@eval/known" one_step 310 --set kl_factor=0.0
for editor in ${*:-ft_l lora rome memit pmet alphaedit ike}; do
  dev "$editor" "$editor"
  bench smollm2-135m "one_step/$editor" "$editor" "counterfact:$facts@eval/known" one_step 310
  bench smollm2-135m "places/$editor" "$editor" places one_step 100
  bench smollm2-135m "sequential100/$editor" "$editor" "counterfact:$facts@eval" sequential:100 100
  bench pocket-vlm "pocket/$editor" "$editor" pocket one_step 60
done
