"""`edit`: find one joint patch, or one per line, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.edits import make_edit, read_edits
from errata.cli.shared.model import ModelOptions, takes_model
from errata.core.errors import BadEdit, BadPatch

if TYPE_CHECKING:
    from errata.core.backbone import Backbone
    from errata.core.editor import Editor
    from errata.core.patch import Patch
    from errata.core.state import State
    from errata.core.types import Edit

SHOWN = 20


@takes_model()
def edit(
    model: ModelOptions,
    editor: options.EditorName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the patch is written.")],
    prompt: Annotated[str | None, typer.Option(help="The question to be answered anew.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer it should have.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="F", help="The image that it is about.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="The part of the prompt that names the thing.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Many edits, one JSON object per line."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One patch per line, in DIR/0001 and so on.")
    ] = False,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Where the editor learns what to spare, if it is cheap to learn."),
    ] = None,
    root: options.Root = None,
    seed: options.Seed = 0,
    rows: options.RowsOption = 16,
) -> None:
    """Find an edit, write it as a patch, show before and after."""
    wanted = _wanted(prompt, target, image, subject, edits)
    check_out(out, each=each)
    ed = options.make_editor(editor, preset, settings)
    known = options.load_state(state, ed)
    bb = model.load()
    ed = ed.for_backbone(bb)
    if known is None and ed.uses_state and not ed.needs_state:
        known = _learn(bb, ed, benchmark, root, seed)
    from errata.io.patch_folder import save

    if each:
        patches = _find_each(bb, ed, wanted, known, rows, seed)
        for number, one in enumerate(patches, 1):
            save(one, out / f"{number:04d}")
        _print_answers(bb, wanted[:SHOWN], patches[:SHOWN])
        print(f"{len(patches)} patches written to {out}")
    else:
        found = ed.edit(bb, wanted, known, seed=seed).patch
        save(found, out)
        _print_answers(bb, wanted[:SHOWN], [found] * len(wanted[:SHOWN]))
        options.print_facts(shown_notes(found))
        print(f"patch written to {out}")
    if len(wanted) > SHOWN:
        print(f"(answers of the first {SHOWN} of {len(wanted)} edits are shown)")


def _learn(
    bb: Backbone, ed: Editor, benchmark: str | None, root: Path | None, seed: int
) -> State | None:
    """The state of an editor that learns cheaply; the bundled models have a benchmark of theirs."""
    from errata.cli.prepare import training_spec
    from errata.core import registry
    from errata.io.states import keep, learnt

    benchmark = benchmark or bb.bundled.get(bb.name)
    if benchmark is None:
        return None  # the editor says what to do
    spec = training_spec(benchmark)
    cases = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed).cases
    state = learnt(ed, bb, cases, seed=seed)
    if state is not None:
        folder = keep(state)
        print(f"learnt from {spec}; the state is kept in {folder} (--state {folder.name})")
    return state


def _wanted(
    prompt: str | None,
    target: str | None,
    image: str | None,
    subject: str | None,
    file: Path | None,
) -> list[Edit]:
    if file is not None:
        if any(x is not None for x in (prompt, target, image, subject)):
            raise BadEdit(
                "--edits comes with its own prompts, targets and images. Leave the others out."
            )
        return read_edits(file)
    if prompt is None or target is None:
        raise BadEdit("nothing to edit. Give --prompt and --target, or --edits FILE.jsonl.")
    return [make_edit(prompt, target, image=image, subject=subject, name="0001")]


def check_out(out: Path, *, each: bool) -> None:
    """Raises BadPatch for a folder with something else in it: nothing foreign is overwritten."""
    if out.exists() and not out.is_dir():
        raise BadPatch(f"{out} is a file. Choose another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    if each or not (out / "patch.json").is_file():
        what = "is not empty" if each else "is not empty and holds no patch"
        raise BadPatch(f"{out} {what}. Choose another --out, or empty it yourself.")


def shown_notes(patch: Patch) -> dict[str, Any]:
    """What an editor noted of the first edits, in a word per fact: null dimension, sizes, steps."""
    notes = {k: v for k, v in patch.header.notes.items() if k != "style"}
    if isinstance(notes.get("edits"), list):
        notes["edits"] = notes["edits"][:SHOWN]
    return notes


def _find_each(
    bb: Backbone, ed: Editor, wanted: list[Edit], state: State | None, rows: int, seed: int
) -> list[Patch]:
    found: list[Patch] = []
    for start in range(0, len(wanted), rows):
        part = wanted[start : start + rows]
        found += [f.patch for f in ed.edit_rows(bb, part, [state] * len(part), seed=seed)]
    return found


def _print_answers(bb: Backbone, wanted: list[Edit], patches: list[Patch]) -> None:
    """The table is about the edits themselves; whether anything else changed is for `bench`."""
    from rich.table import Table
    from rich.text import Text

    from errata.evaluation.answers import ask_prompts

    before = ask_prompts(bb, [e.prompt for e in wanted])
    after = []
    for one, patch in zip(wanted, patches, strict=True):
        with bb.applied(patch):
            after += ask_prompts(bb, [one.prompt])
    table = Table("prompt", "before", "after", "target")
    for one, a, b in zip(wanted, before, after, strict=True):
        table.add_row(*map(Text, (one.prompt.text, a.text, b.text, one.target)))
    options.console().print(table)
    missed = sum(
        b.text.strip().casefold() != one.target.strip().casefold()
        for one, b in zip(wanted, after, strict=True)
    )
    if missed:
        print(
            f"{missed} of {len(wanted)} are not answered with their target; other settings: --set"
        )
