"""Memory of one edit: what it needs while it is made, and what stays.

    python experiments/memory.py BACKBONE EDITOR [EDITOR ...]       (Linux)

Prints CSV, one row per editor, each measured in a process of its own, in bfloat16, on one edit of
the benchmark `places` (text) or `pocket` (pictures): `loaded_mb`, resident memory with the model
loaded; `edit_mb`, how far resident memory rose above that while the edit was made; `patch_mb`, the
size of the saved patch; MB of 2^20 bytes. Statistics and trained states are prepared before, and
are not counted.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

FIELDS = ("editor", "loaded_mb", "edit_mb", "patch_mb")


def measure(backbone: str, name: str) -> dict[str, str]:
    import errata
    from errata.core import registry
    from errata.core.measure.benchmark import BenchmarkSpec
    from errata.core.model.memory import measured_peak, resident_mb
    from errata.evaluation.bench import prepared

    model = errata.load(backbone, dtype="bfloat16")
    spec = BenchmarkSpec.parse("pocket" if "image" in model.capabilities else "places")
    editor = errata.editor(name).for_backbone(model)
    state = prepared(model, editor, spec, seed=0, root=None)
    edit = registry.load("benchmarks", spec.name)().load(spec).cases[0].edit
    errata.ask(model, [edit.prompt])
    loaded = resident_mb()
    with measured_peak() as peak:
        patch = editor.edit(model, [edit], state=state).patch
    assert peak.mb is not None
    with tempfile.TemporaryDirectory() as folder:
        errata.save_patch(patch, Path(folder) / "patch")
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    numbers = (loaded, peak.mb - loaded, size / 2**20)
    return dict(zip(FIELDS, (name, *(f"{x:.1f}" for x in numbers)), strict=True))


def main() -> None:
    backbone, *editors = sys.argv[1:]
    if backbone == "--one":
        csv.DictWriter(sys.stdout, FIELDS).writerow(measure(*editors))
        return
    print(",".join(FIELDS))
    for name in editors:
        subprocess.run([sys.executable, __file__, "--one", backbone, name], check=True)


if __name__ == "__main__":
    main()
