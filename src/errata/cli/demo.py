"""`demo`: some editors on a small model, measured, undone, and a report."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.printing import say
from errata.core.errors import BadRun
from errata.core.files import check_folder, visible, write_bytes
from errata.core.locks import locked

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.types import Case

MARK = ".errata-demo"


@dataclass(frozen=True)
class Demo:
    """What is shown: a model, the benchmark it is edited on, editors, and edits per editor."""

    model: str
    benchmark: str
    editors: tuple[str, ...]
    limit: int


PICTURES = Demo("micro-vlm", "microworld:vqa", ("ft_l", "ft_v", "tpatcher", "ike", "unike"), 40)
TEXT = Demo("smollm2-135m", "places", ("ft_l", "memit", "ike"), 10)


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
    limit: Annotated[
        int | None, typer.Option(min=1, help="Edits per editor. Default: 40; with --text 10.")
    ] = None,
    seed: options.Seed = 0,
    text: Annotated[
        bool, typer.Option("--text", help="Edit smollm2-135m, which knows real facts, instead.")
    ] = False,
) -> None:
    """Edit a small model with several methods; measure, undo, report."""
    shown = TEXT if text else PICTURES
    check_folder(out)
    with locked(out):
        _demo(out, replace(shown, limit=limit or shown.limit), seed)


def _demo(out: Path, shown: Demo, seed: int) -> None:
    from errata.cli.shared.progress import reporting
    from errata.cli.shared.tables import print_tables
    from errata.contract.editors import weights
    from errata.evaluation.bench import bench
    from errata.report.html import write_report
    from errata.report.results import read_settings

    started = time.perf_counter()
    bb = ModelOptions(shown.model).load()
    _fresh(out)
    shown = _possible(shown, bb)
    say(
        f"{len(shown.editors)} editors make {shown.limit} edits each on {shown.model}, one at a "
        f"time ({shown.benchmark})."
    )
    unedited_hash = weights(bb)
    runs = []
    for name in shown.editors:
        editor = options.make_editor(name, None, None)
        with reporting(name) as progress:
            run = bench(
                bb, editor, shown.benchmark, "one_step", out / name,
                seed=seed, limit=shown.limit, progress=progress,
            )  # fmt: skip
        runs.append(run)
    print_tables(read_settings(runs))
    undo = show_undo(bb, runs[0], out / "patch", unedited_hash, seed)
    _print_undo(undo, shown.model, out / "patch")
    report = write_report(runs, out / "report.html", title="errata demo")
    say(f"\n{time.perf_counter() - started:.0f} s in all. Open the report: {report.resolve()}")
    if undo.before != undo.undone or not undo.same_weights:
        raise AssertionError("the edit was not undone completely")


def _possible(shown: Demo, bb: Backbone) -> Demo:
    """The demo without editors whose state is not installed; a line says which."""
    made = {name: options.make_editor(name, None, None) for name in shown.editors}
    lacking = [n for n, e in made.items() if e.needs_state and e.shipped_state(bb) is None]
    for name in lacking:
        say(
            f"{name} is left out: its state for {shown.model} is in errata's source distribution "
            f"only. `errata prepare {shown.model} --editor {name} --benchmark "
            f"{shown.benchmark}@train --out DIR` makes it."
        )
    return replace(shown, editors=tuple(n for n in shown.editors if n not in lacking))


def _fresh(out: Path) -> None:
    """Empties the folder of an earlier demo. Raises BadRun if it holds anything else."""
    names = visible(out)
    if names and not (out / MARK).is_file():
        raise BadRun(f"{out} is not empty and holds no demo. Choose another --out.")
    for name in names:
        old = out / name
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    write_bytes(out / MARK, b"written by errata demo, which may delete this folder\n")


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


def _print_undo(undo: Undo, model: str, folder: Path) -> None:
    say(f"\nOne edit, undone. Question: {undo.prompt!r}, new answer: {undo.target!r}")
    say(f"  before the edit      {undo.before}")
    say(f"  with the patch       {undo.edited}")
    say(f"  patch removed        {undo.undone}")
    same = "the same as before the first edit" if undo.same_weights else "CHANGED"
    say(f"  hash of all weights  {same}")
    say(f"  the patch            {folder} (apply it: errata ask {model} --patch {folder} ...)")
