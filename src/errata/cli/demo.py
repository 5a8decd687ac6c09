"""`demo`: five editors on the bundled model, measured, undone, and a report."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions
from errata.core.errors import BadRun

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.types import Case

MODEL = "micro-vlm"
EDITORS = ("ft_l", "ft_v", "tpatcher", "ike", "unike")
BENCHMARK = "microworld:vqa"
MARK = ".errata-demo"


@dataclass(frozen=True)
class Undo:
    """The answer to one prompt before an edit, with the patch, and without it again."""

    prompt: str
    target: str
    before: str
    edited: str
    undone: str
    same_weights: bool


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for runs, a patch and the report.")
    ] = Path("runs/demo"),
    limit: Annotated[int, typer.Option(min=1, help="Edits per editor.")] = 40,
    seed: options.Seed = 0,
) -> None:
    """Edit the bundled model with five methods; measure, undo, report."""
    from errata.cli.shared.progress import reporting
    from errata.cli.shared.tables import print_tables
    from errata.contract.editors import weights
    from errata.evaluation.bench import bench
    from errata.report.html import write_report
    from errata.report.results import read_settings

    _fresh(out)
    started = time.perf_counter()
    print(
        f"{len(EDITORS)} editors make {limit} edits each on {MODEL}, one at a time ({BENCHMARK})."
    )
    bb = ModelOptions(MODEL).load()
    unedited_hash = weights(bb)
    runs = []
    for name in EDITORS:
        editor = options.make_editor(name, None, None)
        with reporting(name) as progress:
            run = bench(
                bb, editor, BENCHMARK, "one_step", out / name,
                seed=seed, limit=limit, progress=progress,
            )  # fmt: skip
        runs.append(run)
    print_tables(read_settings(runs))
    undo = show_undo(bb, runs[0], out / "patch", unedited_hash, seed)
    _print_undo(undo, out / "patch")
    report = write_report(runs, out / "report.html", title="errata demo")
    print(f"\n{time.perf_counter() - started:.0f} s in all. Open the report: {report.resolve()}")
    if undo.before != undo.undone or not undo.same_weights:
        raise AssertionError("the edit was not undone completely")


def _fresh(out: Path) -> None:
    """Empties the folder of an earlier demo. Raises BadRun if it holds anything else."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise BadRun(f"{out} is not empty and holds no demo. Choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("written by errata demo, which may delete this folder\n")


def show_undo(bb: Backbone, run: Path, folder: Path, unedited_hash: str, seed: int) -> Undo:
    """Repeats one edit of a run, saves it, applies the saved patch, and removes it."""
    from errata.contract.editors import weights
    from errata.evaluation.answers import ask_prompts
    from errata.io.patch_folder import load, save

    case = _successful_case(run)
    prompt = case.edit.prompt
    (before,) = ask_prompts(bb, [prompt])
    editor = options.make_editor("ft_l", None, None).for_backbone(bb)
    save(editor.edit(bb, [case.edit], seed=seed).patch, folder)
    with bb.applied(load(folder, bb)):
        (edited,) = ask_prompts(bb, [prompt])
    (undone,) = ask_prompts(bb, [prompt])
    return Undo(
        prompt.text,
        case.edit.target,
        before.text,
        edited.text,
        undone.text,
        weights(bb) == unedited_hash,
    )


def _successful_case(run: Path) -> Case:
    """The first case whose edited question is answered with the target, else the first case."""
    from errata.core import registry
    from errata.evaluation.run_folder import read_run

    exact, folder = registry.load("metrics", "exact")(), read_run(run)
    for asked in folder.asked():
        for row in asked.rows:
            if row.probe.kind == "reliability" and exact.score(row.before, row.after, row.probe):
                return folder.cases[asked.case]
    return next(iter(folder.cases.values()))


def _print_undo(undo: Undo, folder: Path) -> None:
    print(f"\nOne edit, undone. Question: {undo.prompt!r}, new answer: {undo.target!r}")
    print(f"  before the edit      {undo.before}")
    print(f"  with the patch       {undo.edited}")
    print(f"  patch removed        {undo.undone}")
    same = "the same as before the first edit" if undo.same_weights else "CHANGED"
    print(f"  hash of all weights  {same}")
    print(f"  the patch            {folder} (apply it: errata ask {MODEL} --patch {folder} ...)")
