#!/bin/sh
# Ablations of DualEdit on one thread (docs/results/trained-editors.md): Fig. 5 (pairs of layers), Table 1
# (one modality alone, no gate) and Table 3 (modality and gate), on dev, where layers are chosen; and training
# on the far questions that are scored (docs/results/locality.md), on eval. Small trainings: 200 updates of 8
# cases (preset: 1200 of 16), one seed.
#   sh experiments/dualedit.sh [fig5 table1 table3 published draw]      resumes unfinished runs
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
here=runs/dualedit
train() { # STATE BENCHMARK TEXT VISUAL
  test -f "$1/state.json" || "$errata" prepare micro-vlm --editor dualedit --benchmark "$2" \
    --set "text_layer=$3" --set "visual_layer=$4" --set steps=200 --set batch_size=8 --set eval_steps=100 \
    --set held_out=32 --set gate_cases=32 --out "$1"
}
run() { # GATE TEXT VISUAL
  train "$here/state-$2-$3" microworld:vqa@train/v1 "$2" "$3"
  "$errata" bench micro-vlm --editor dualedit --benchmark microworld:vqa@dev/v1 --protocol one_step \
    --limit 60 --state "$here/state-$2-$3" --set "text_layer=$2" --set "visual_layer=$3" \
    --set "gate=$1" --out "$here/$1-$2-$3"
}
for part in ${*:-fig5 table1 table3 published draw}; do
  case $part in
  fig5)
    for text in 0 1 3; do
      for visual in 0 2 4; do run none $text $visual; done
    done
    ;;
  table1)
    for text in 0 1 3; do run none $text null; done
    for visual in 0 2 4; do run none null $visual; done
    ;;
  table3)
    run prompt 1 null
    run prompt null 2
    run prompt 1 2
    run leaky 1 2
    ;;
  published)
    for variant in disjoint published; do
      train "$here/far-$variant" "microworld:vqa@train/$variant" 1 2
      "$errata" bench micro-vlm --editor dualedit --benchmark microworld:vqa@eval/v1 --protocol one_step \
        --limit 240 --state "$here/far-$variant" --set gate=none --out "runs/far/$variant"
    done
    ;;
  draw)
    "$errata" report $here/none-* --vary text_layer,visual_layer --plots $here/fig5
    "$errata" report $here/none-*-null $here/none-null-* --vary text_layer --vary visual_layer \
      --plots $here/table1
    "$errata" report $here/none-1-2 $here/none-1-null $here/none-null-2 $here/prompt-* $here/leaky-* \
      --vary gate --plots $here/table3
    "$errata" report $here/none-* $here/prompt-* $here/leaky-* --analysis $here/fig5 \
      --analysis $here/table1 --analysis $here/table3 --html $here/report.html
    ;;
  esac
done
