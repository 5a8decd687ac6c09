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
known() { # SPLIT LIMIT NAME EDITOR [OPTION ...]
  split=$1 limit=$2 name=$3 editor=$4
  shift 4
  bench smollm2-135m "$name" "$editor" "counterfact:$facts@$split/known" one_step "$limit" "$@"
}
# the step of the search; before errata had lr=auto, all of the settings below were tried with 0.5
known dev 60 dev/memit memit
known dev 60 dev/memit-lr1 memit --set lr=1.0
known dev 60 dev/memit-lr05 memit --set lr=0.5
known dev 60 dev/memit-lr05-300 memit --set lr=0.5 --set mom2_weight=300
known dev 60 dev/memit-lr05-L1-5 memit --set lr=0.5 --set layers=[1,2,3,4,5]
known dev 60 dev/memit-lr05-L5-9 memit --set lr=0.5 --set layers=[5,6,7,8,9]
known dev 60 dev/memit-lr05-clamp1 memit --set lr=0.5 --set clamp=1.0
known dev 60 dev/memit-lr05-clamp16 memit --set lr=0.5 --set clamp=16.0
known dev 60 dev/memit-lr05-kl0 memit --set lr=0.5 --set kl_factor=0.0
known eval 310 one_step/memit-lr05 memit --set lr=0.5
known eval 310 one_step/ft_l-rome ft_l --preset rome-gpt2-xl
known eval 310 one_step/pmet pmet --set write=ffn
known eval 100 one_step/pmet-stream pmet --dtype float32
# default settings, as they are without a preset
for editor in ft_l lora tpatcher ike rome memit pmet alphaedit; do
  known dev 20 "default/$editor" "$editor"
  bench pocket-vlm "pocket-default/$editor" "$editor" pocket one_step 20
done
bench pocket-vlm pocket-default/ft_v ft_v pocket one_step 20
for editor in ${*:-ft_l lora rome memit alphaedit ike}; do
  known eval 310 "one_step/$editor" "$editor"
  bench smollm2-135m "places/$editor" "$editor" places one_step 100
  bench smollm2-135m "sequential100/$editor" "$editor" "counterfact:$facts@eval" sequential:100 130
  bench pocket-vlm "pocket/$editor" "$editor" pocket one_step 60
done
.venv/bin/python experiments/memory.py smollm2-135m ft_l lora rome memit pmet alphaedit ike
