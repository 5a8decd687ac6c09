#!/bin/sh
# The runs behind docs/results/pictures.md, on one thread.
#   sh experiments/pictures.sh [NAME ...]      writes runs/umm/NAME-PROTOCOL and runs/drift-NAME, resumes unfinished runs
# Where an edit is written: memit at the subject's token in the causal blocks (its preset), in late
# blocks (`late`), and at the last token of the prompt in late blocks (`answer`).
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
bench() { # NAME PROTOCOL LIMIT EDITOR [OPTION ...]
  name=$1 protocol=$2 limit=$3 editor=$4
  shift 4
  test -f "runs/umm/$name/scores.json" || "$errata" bench micro-umm --editor "$editor" \
    --benchmark unike_umm:microworld --protocol "$protocol" --limit "$limit" --out "runs/umm/$name" "$@"
}
direct() { # NAME EDITOR [OPTION ...]
  name=$1
  shift
  bench "$name-direct" direct:10x10 100 "$@"
}
both() { # NAME EDITOR [OPTION ...]
  direct "$@"
  name=$1
  shift
  bench "$name-reasoning" reasoning:prepend:10x10 100 "$@"
}
drift() { # NAME EDITOR [OPTION ...]
  name=$1 editor=$2
  shift 2
  test -f runs/moments/state.json || "$errata" prepare micro-umm --editor memit \
    --benchmark unike_umm:microworld@train --out runs/moments
  test -f "runs/drift-$name/drift.json" || "$errata" analyze drift micro-umm --editor "$editor" \
    --state runs/moments --benchmark unike_umm:microworld --limit 100 --out "runs/drift-$name" "$@"
}
late="--set layers=[5,6] --set mom2_weight=30"
for name in ${*:-memit answer late pmet alphaedit rome ft_l bridge bridge_only bridge_random essence \
  sequences variants drift}; do
  case $name in
    answer) both memit-answer memit $late --set token=last_prompt ;;
    late) both memit-late memit $late ;;
    bridge_only) direct bridge_only bridge --set text_weight=0 ;;
    bridge_random) direct bridge_random bridge --set random=true ;;
    essence) direct memit-essence memit --set "essence=The shape of a {} is" --set kl_factor=1.0 ;;
    # 348 cases = all of eval: six sequences of 50 edits over 58 things; one picture of each prompt
    sequences) for e in memit pmet alphaedit; do
      bench "$e-sequence" direct:50x10 348 "$e" --rows 1 --image-seeds 1
    done ;;
    variants) for v in replace instruct; do bench "memit-$v" "reasoning:$v:10x10" 100 memit; done ;;
    drift)
      drift memit memit
      drift memit-answer memit $late --set token=last_prompt
      drift memit-late memit $late
      drift bridge bridge
      ;;
    *) both "$name" "$name" ;;
  esac
done
