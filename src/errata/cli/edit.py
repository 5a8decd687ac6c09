"""`edit`: make one joint patch, or one patch per edit, and save it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.edits import make_edit, read_edits
from errata.cli.shared.model import ModelOptions, takes_model
from errata.core.errors import BadEdit, BadPatch, BadSpec

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch
    from errata.core.state import State
    from errata.core.types import Edit
    from errata.evaluation.verify import EditCheck

SHOWN = 20


@takes_model()
def edit(
    model: ModelOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the patch is written.")],
    editor: Annotated[
        str | None,
        typer.Option(help="See `errata list editors`. Without it one that fits is chosen."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question whose answer changes.")] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="The image that the question is about: a file, or a generated one (README): "
            "microworld:shape=ring,colour=blue,...",
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="The words of the prompt that name the edited thing."),
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Many edits, one JSON object per line."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One patch per edit, in DIR/0001 and so on.")
    ] = False,
    patch: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A patch to edit on top of; repeatable, in order."),
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Benchmark that the editor's state is collected from."),
    ] = None,
    root: options.Root = None,
    seed: options.Seed = 0,
    rows: options.RowsOption = 16,
) -> None:
    """Make an edit and save it as a patch.

    Prints the answers before and after the edit. An edit that is not answered with its target is
    saved all the same; the command then ends with exit code 3.
    """
    requested = _requested(prompt, target, image, subject, edits)
    check_out(out, each=each)
    if not each:
        _refuse_contradictions(requested)
    ed = None if editor is None else options.make_editor(editor, preset, settings)
    if ed is None and (preset is not None or settings or state is not None):
        raise BadSpec("--preset, --set and --state belong to an editor. Name it with --editor.")
    prepared = None if ed is None else options.load_state(state, ed)
    bb = model.load()
    if ed is None:
        ed = _chosen(bb, requested)
    ed = ed.for_backbone(bb)
    if prepared is None and ed.uses_state and not ed.needs_state:
        prepared = _collect(bb, ed, benchmark, root, seed)
    from errata.io.patch_folder import load

    with bb.applied(*(load(folder, bb) for folder in patch or ())):
        checks = _make(bb, ed, requested, prepared, out, each=each, rows=rows, seed=seed)
    missed = [c for c in checks if not c.kept]
    if missed:
        options.fall_short(
            f"{len(missed)} of {len(checks)} edits missed the target: {missed[0]}. {out} is "
            "written all the same. Other settings: --set or --editor."
        )


def _make(
    bb: Backbone, ed: Editor, edits: list[Edit], state: State | None, out: Path, *,
    each: bool, rows: int, seed: int,
) -> list[EditCheck]:  # fmt: skip
    """Finds the patches, on top of what is applied, saves them and prints the answers."""
    from errata.io.patch_folder import save

    if each:
        patches = _find_each(bb, ed, edits, state, rows, seed)
        for number, single in enumerate(patches, 1):
            save(single, out / f"{number:04d}")
    else:
        joint = ed.edit(bb, edits, state, seed=seed).patch
        patches = [joint] * len(edits)
        save(joint, out)
    checks = _print_answers(bb, edits, patches)
    if not each:
        options.print_facts(notes_of(joint))
    print(f"{len(patches)} patches written to {out}" if each else f"patch written to {out}")
    return checks


def _refuse_contradictions(edits: Sequence[Edit]) -> None:
    """Raises BadEdit for two edits of one patch that want different answers to one question."""
    from errata.core.editor import contradiction

    found = contradiction(edits)
    if found is not None:
        first, second = found
        raise BadEdit(
            f"edits '{first.id}' and '{second.id}' want '{first.target[:60]}' and "
            f"'{second.target[:60]}' as the answer to '{first.prompt.text[:60]}'. Keep one of "
            "them, or make a patch of each: --each."
        )


def _chosen(bb: Backbone, edits: Sequence[Edit]) -> Editor:
    from errata.editors import choose

    editor, why = choose(bb, edits)
    print(f"editor {editor.name}: {why} (another one: --editor NAME)")
    return editor


def _collect(
    bb: Backbone, ed: Editor, benchmark: str | None, root: Path | None, seed: int
) -> State | None:
    """The editor's state, collected from the train split of a benchmark.

    By default of the benchmark that the bundled model was made for.
    """
    from errata.cli.prepare import training_spec
    from errata.core import registry
    from errata.io.states import prepare_cached, store

    benchmark = benchmark or bb.bundled.get(bb.name)
    if benchmark is None:
        return None  # the editor raises MissingState
    spec = training_spec(benchmark)
    cases = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed).cases
    state = prepare_cached(ed, bb, cases, seed=seed)
    if state is not None:
        folder = store(state)
        print(f"state collected from {spec}, saved in {folder} (--state {folder.name})")
    return state


def _requested(
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
    """Raises BadPatch for a folder that holds anything but a patch: nothing is overwritten."""
    if out.exists() and not out.is_dir():
        raise BadPatch(f"{out} is a file. Choose another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    if each or not (out / "patch.json").is_file():
        what = "is not empty" if each else "is not empty and holds no patch"
        raise BadPatch(f"{out} {what}. Choose another --out, or empty it yourself.")


def notes_of(patch: Patch) -> dict[str, Any]:
    """The editor's notes on the first edits: rank, sizes, steps."""
    notes = {k: v for k, v in patch.header.notes.items() if k != "style"}
    if isinstance(notes.get("edits"), list):
        notes["edits"] = notes["edits"][:SHOWN]
    return notes


def _find_each(
    bb: Backbone, ed: Editor, edits: list[Edit], state: State | None, rows: int, seed: int
) -> list[Patch]:
    patches: list[Patch] = []
    for start in range(0, len(edits), rows):
        part = edits[start : start + rows]
        patches += [f.patch for f in ed.edit_rows(bb, part, [state] * len(part), seed=seed)]
    return patches


def _print_answers(
    bb: Backbone, edits: Sequence[Edit], patches: Sequence[Patch]
) -> list[EditCheck]:
    """Asks all edited questions; prints the first. Side effects are measured by `bench`."""
    from rich.table import Table
    from rich.text import Text

    from errata.evaluation.answers import ask_prompts
    from errata.evaluation.verify import verify_edits

    before = ask_prompts(bb, [e.prompt for e in edits[:SHOWN]])
    checks = verify_edits(bb, edits, patches)
    table = Table("prompt", "before", "after", "target")
    for edit, a, b in zip(edits, before, checks, strict=False):
        table.add_row(*map(Text, (edit.prompt.text, a.text, b.answer.text, edit.target)))
    options.console().print(table)
    if len(edits) > SHOWN:
        print(f"(answers of the first {SHOWN} of {len(edits)} edits are shown)")
    return checks
