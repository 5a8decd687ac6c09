#!/bin/sh
# The runs behind "Does a text edit reach the picture?" in docs/results.md, on one thread.
#   sh benchmarks/pictures.sh [NAME ...]      writes runs/umm/NAME-PROTOCOL, resumes what is there
# Where an edit is written: memit at the subject's token in the causal blocks (its preset), in late
# blocks (`late`), and at the last token of the prompt in late blocks (`answer`).
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
run() { # NAME PROTOCOL EDITOR [OPTION ...]
  name=$1 protocol=$2 editor=$3
  shift 3
  test -f "runs/umm/$name/scores.json" || "$errata" bench micro-umm --editor "$editor" \
    --benchmark unike_umm:microworld --protocol "$protocol" --limit 100 --out "runs/umm/$name" "$@"
}
both() { # NAME EDITOR [OPTION ...]
  name=$1
  shift
  run "$name-direct" direct:10x10 "$@"
  run "$name-reasoning" reasoning:prepend:10x10 "$@"
}
for name in ${*:-memit answer late pmet alphaedit rome ft_l bridge sequences}; do
  case $name in
    answer) both memit_answer memit --set layers=[5,6] --set token=last_prompt --set mom2_weight=30 ;;
    late) both memit_late memit --set layers=[5,6] --set mom2_weight=30 ;;
    sequences) for e in memit pmet alphaedit; do run "$e-sequence" direct:50x10 "$e"; done ;;
    *) both "$name" "$name" ;;
  esac
done
