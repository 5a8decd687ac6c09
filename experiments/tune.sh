#!/bin/sh
# The same 20 trials for every search editor, on single edits and on sequences of both tasks (dev).
#   sh experiments/tune.sh [EDITOR ...]      writes runs/tune/EDITOR.json; hours on one thread
set -eu
export OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
mkdir -p runs/tune
for editor in ${*:-ft_l ft_v lora tpatcher ike unike}; do
  "$python" experiments/tune.py --editor "$editor" --trials 20 --limit 60 \
    --benchmark microworld:vqa@dev microworld:caption@dev --protocol one_step sequential:10 \
    --out "runs/tune/$editor.json"
done
