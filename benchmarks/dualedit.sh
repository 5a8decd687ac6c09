#!/bin/sh
# The ablations of DualEdit on dev (layers are chosen there), on one thread: Fig. 5 (pairs of layers),
# Table 1 (one modality alone, no gate), Table 3 (layers, modality, gate), and what training on the scored
# locality buys. Networks of the first three are trained for 300 updates each, a quarter of the preset.
#   sh benchmarks/dualedit.sh [fig5 table1 table3 published draw]      resumes what is there
set -eu
export OMP_NUM_THREADS=1
errata=${ERRATA:-.venv/bin/errata}
here=runs/dualedit
layers() { # TEXT VISUAL: a network of its own
  test -f "$here/state-$1-$2/state.json" || "$errata" prepare micro-vlm --editor dualedit \
    --benchmark microworld:vqa@train --set "text_layer=$1" --set "visual_layer=$2" --set steps=300 \
    --set every=100 --out "$here/state-$1-$2"
}
run() { # GATE TEXT VISUAL
  layers "$2" "$3"
  "$errata" bench micro-vlm --editor dualedit --benchmark microworld:vqa@dev --protocol one_step \
    --limit 100 --state "$here/state-$2-$3" --set "text_layer=$2" --set "visual_layer=$3" \
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
    for pair in "1 null" "null 2" "1 2"; do run prompt $pair; done
    run leaky 1 2
    ;;
  published)
    for variant in disjoint published; do
      state=runs/published/state-$variant
      test -f "$state/state.json" || "$errata" prepare micro-vlm --editor dualedit \
        --benchmark "microworld:vqa@train/$variant" --out "$state"
      for gate in none prompt; do
        "$errata" bench micro-vlm --editor dualedit --benchmark microworld:vqa --protocol one_step \
          --limit 240 --state "$state" --set "gate=$gate" --out "runs/published/$gate-$variant"
      done
    done
    ;;
  draw)
    "$errata" report $here/none-[0-9]* $here/none-null-* --vary text_layer,visual_layer --plots $here/fig5
    "$errata" report $here/none-[0-9]-null $here/none-null-* --vary text_layer --vary visual_layer --plots $here/table1
    "$errata" report $here/*-1-2 $here/*-1-null $here/*-null-2 --vary gate --plots $here/table3
    "$errata" report $here/*-[0-9n]*-[0-9n]* --analysis $here/fig5 --analysis $here/table1 \
      --analysis $here/table3 --html $here/report.html
    ;;
  esac
done
