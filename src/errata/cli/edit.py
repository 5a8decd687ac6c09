"""`edit`: make one joint patch, or one patch per edit, and save it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.patch.folder import check_out as check_patch_out
from errata.cli.shared import options, patches
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import fall_short, say, show_table
from errata.core.errors import BadEdit, BadPatch, BadSpec
from errata.core.formats.counts import counted
from errata.core.locks import locked

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.model.scope import Scope
    from errata.core.patch import Patch
    from errata.core.state import State
    from errata.core.types import Edit
    from errata.evaluation.verify import EditCheck

SHOWN = 20


Each = Annotated[
    bool,
    typer.Option(
        "--each", help="One patch per edit, in DIR/0001 and so on; those that exist are kept."
    ),
]
Together = Annotated[
    bool,
    typer.Option(
        "--together",
        help="With --each: find each patch on top of the earlier ones, one after the other, "
        "and ask all edits with all patches applied.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace patches that are in DIR already.")]
WithImages = Annotated[
    bool,
    typer.Option(
        "--with-images",
        help="Copy the picture files of the facts into the patch, so that it can be verified on "
        "another machine.",
    ),
]


@takes_model(batches=True)
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
        str | None, typer.Option(help="The words of the prompt that name the edited thing.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Many edits, one JSON object per line."),
    ] = None,
    each: Each = False,
    together: Together = False,
    force: Force = False,
    patch: patches.Applied = None,
    with_images: WithImages = False,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    scope: options.ScopeName = None,
    scope_set: options.ScopeSettings = None,
    scope_state: options.ScopeState = None,
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
    if together and not each:
        raise BadSpec("--together says how the patches of --each are found. Give --each too.")
    requested = _requested(prompt, target, image, subject, edits)
    check_out(out, each=each, force=force)
    if not each:
        _refuse_contradictions(requested)
    ed = None if editor is None else options.make_editor(editor, preset, settings)
    if ed is None and (preset is not None or settings or state is not None):
        raise BadSpec("--preset, --set and --state belong to an editor. Name it with --editor.")
    prepared = None if ed is None else options.load_state(state, ed)
    bounds = options.make_scope(scope, scope_set, scope_state)
    below = patches.located(patch)
    bb = model.load([p.head() for p in below])
    if ed is None:
        ed = _chosen(bb, requested)
    ed = ed.for_backbone(bb)
    if prepared is None and ed.uses_state and not ed.needs_state:
        prepared = collect(bb, ed, benchmark, root, seed)
    ed = options.behind(ed, _ready(bb, bounds, benchmark, root, seed))
    with locked(out), bb.applied(*(p.load(bb) for p in below)):
        check_out(out, each=each, force=force)  # another command may have written it meanwhile
        checks = _make(
            bb, ed, requested, prepared, out, each=each, rows=rows, seed=seed, force=force,
            together=together, with_images=with_images,
        )  # fmt: skip
    missed = [c for c in checks if not c.kept]
    if missed:
        fall_short(
            f"{len(missed)} of {counted(len(checks), 'edit')} missed the target: {missed[0]}. "
            f"{out} is written all the same. Other settings: --set or --editor."
        )


def _make(
    bb: Backbone, ed: Editor, edits: list[Edit], state: State | None, out: Path, *,
    each: bool, rows: int, seed: int, force: bool, together: bool, with_images: bool,
) -> list[EditCheck]:  # fmt: skip
    """Finds the patches, on top of what is applied, saves them and prints the answers."""
    from errata.io.patch_folder import load, save
    from errata.patches.stack import stacked

    def keep(patch: Patch, folder: Path) -> None:
        save(patch, folder, with_images=with_images)

    if each:
        write = _write_in_order if together else _write_each
        folders = write(bb, ed, edits, state, out, rows, seed, force, keep)
        made = [load(folder, bb) for folder in folders]
        if together:
            made = [stacked(*made)] * len(edits)
    else:
        joint = ed.edit(bb, edits, state, seed=seed).patch
        made = [joint] * len(edits)
        keep(joint, out)
    checks = _print_answers(bb, edits, made)
    if not each:
        options.print_facts(notes_of(joint))
    what = counted(len(made), "patch") if each else "patch"
    say(f"{what} written to {out}")
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
    say(f"editor {editor.name}: {why} (another one: --editor NAME)")
    return editor


def _ready(
    bb: Backbone, scope: Scope | None, benchmark: str | None, root: Path | None, seed: int
) -> Scope | None:
    """The scope with a state, if it needs one that is cheap and has none."""
    if scope is None or not scope.lacks_state:
        return scope
    return scope.with_state(collect(bb, scope, benchmark, root, seed))


def collect(
    bb: Backbone, ed: Editor | Scope, benchmark: str | None, root: Path | None, seed: int
) -> State | None:
    """The state of an editor or a scope, collected from the train split of a benchmark.

    By default of the benchmark that the bundled model was made for.
    """
    from errata.cli.prepare import training_spec
    from errata.core import registry
    from errata.core.editor import Editor
    from errata.io.states import prepare_cached, store_if_possible

    benchmark = benchmark or bb.bundled.get(bb.name)
    if not benchmark:
        return None  # the editor raises MissingState
    spec = training_spec(benchmark)
    cases = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed).cases
    state = prepare_cached(ed, bb, cases, seed=seed)
    if state is not None:
        folder = store_if_possible(state)
        if folder is not None:
            option = "--state" if isinstance(ed, Editor) else "--scope-state"
            say(f"state collected from {spec}, saved in {folder} ({option} {folder.name})")
    return state


def _requested(
    prompt: str | None,
    target: str | None,
    image: str | None,
    subject: str | None,
    file: Path | None,
) -> list[Edit]:
    from errata.benchmarks.facts.edits import make_edit, read_edits

    if file is not None:
        if any(x is not None for x in (prompt, target, image, subject)):
            raise BadEdit(
                "--edits comes with its own prompts, targets and images. Leave the others out."
            )
        return read_edits(file)
    if prompt is None or target is None:
        raise BadEdit("nothing to edit. Give --prompt and --target, or --edits FILE.jsonl.")
    return [make_edit(prompt, target, image=image, subject=subject, name="0001")]


def check_out(out: Path, *, each: bool, force: bool = False) -> None:
    """Raises BadPatch or BadOutput unless patches can be written to the folder; before any work.

    A patch is replaced only with `force`; with `each`, patches that are there are kept. A folder
    that holds anything else is refused.
    """
    from errata.core import files

    if not each:
        return check_patch_out(out, force=force)
    files.check_folder(out, BadPatch)
    if out.is_dir():
        files.finish_folder(out)
    if any(not n.isdigit() for n in files.visible(out)):
        raise BadPatch(
            f"{out} is not empty and holds other things than patches of --each. Choose another "
            "--out, or empty it yourself."
        )
    return None


def notes_of(patch: Patch) -> dict[str, Any]:
    """The editor's notes on the first edits: rank, sizes, steps."""
    notes = {k: v for k, v in patch.header.notes.items() if k != "style"}
    if isinstance(notes.get("edits"), list):
        notes["edits"] = notes["edits"][:SHOWN]
    return notes


def _write_each(
    bb: Backbone,
    ed: Editor,
    edits: list[Edit],
    state: State | None,
    out: Path,
    rows: int,
    seed: int,
    force: bool,
    keep: Callable[[Patch, Path], None],
) -> list[Path]:
    """Makes and saves one patch per edit, batch by batch; returns their folders.

    Patches that an earlier, unfinished command made of the same edits are kept. The batches are
    the same as without them, so that the others come out the same.
    """
    folders = [out / f"{number:04d}" for number in range(1, len(edits) + 1)]
    there = [
        not force and _is_made(f, bb, ed, e, seed) for f, e in zip(folders, edits, strict=True)
    ]
    for start in range(0, len(edits), rows):
        batch = range(start, min(start + rows, len(edits)))
        if all(there[i] for i in batch):
            continue
        part = [edits[i] for i in batch]
        results = ed.edit_rows(bb, part, [state] * len(part), seed=seed)
        for i, result in zip(batch, results, strict=True):
            if not there[i]:
                keep(result.patch, folders[i])
    return folders


def _write_in_order(
    bb: Backbone,
    ed: Editor,
    edits: list[Edit],
    state: State | None,
    out: Path,
    rows: int,
    seed: int,
    force: bool,
    keep: Callable[[Patch, Path], None],
) -> list[Path]:
    """As `_write_each`, each patch on top of the earlier ones."""
    from errata.io.patch_folder import load

    folders: list[Path] = []
    with ExitStack() as live:
        for number, edit in enumerate(edits, 1):
            folder = out / f"{number:04d}"
            made = not force and _is_made(folder, bb, ed, edit, seed)
            if not made or ed.uses_state:  # the state of the next edit comes from this one
                result = ed.edit(bb, [edit], state, seed=seed)
                state = result.state or state
                keep(result.patch, folder)
            live.enter_context(bb.applied(load(folder, bb)))
            folders.append(folder)
    return folders


def _is_made(folder: Path, bb: Backbone, ed: Editor, edit: Edit, seed: int) -> bool:
    """Whether the folder holds this edit by this editor. Raises BadPatch if it holds another."""
    from errata.core.files import exists, finish_folder, from_plain, visible
    from errata.core.hooks.hook import flat_on_row
    from errata.core.patch import tops
    from errata.io.patch_folder import read_edits, read_head

    if folder.is_dir():
        finish_folder(folder)
    if not exists(folder) or not visible(folder):
        return False
    head = read_head(folder)
    there = {k: head["header"].get(k) for k in ("editor", "arguments", "fingerprint", "seed")}
    there["below"] = sorted((head["header"].get("notes") or {}).get("on_top_of", ()))
    wanted = {
        "editor": ed.name,
        "arguments": from_plain({"preset": ed.preset, **ed.passed}),
        "fingerprint": bb.fingerprint(),
        "seed": seed,
        "below": sorted(tops(flat_on_row(bb.hooks.stack, 0))),
    }
    if there != wanted or not _same(read_edits(folder, head), edit):
        raise BadPatch(
            f"{folder} holds a patch of another edit or of other settings. Give --force to replace "
            "it, or choose another --out."
        )
    return True


def _same(edits: Sequence[Edit], edit: Edit) -> bool:
    """Whether this is the only one of the edits; its pictures may be in another place."""
    from dataclasses import replace

    from errata.core.patch import same_prompt

    return len(edits) == 1 and (
        edits[0] == edit
        or (same_prompt(edits[0].prompt, edit.prompt)
            and replace(edits[0], prompt=edit.prompt) == edit)
    )  # fmt: skip


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
    show_table(table)
    if len(edits) > SHOWN:
        say(f"(answers of the first {SHOWN} of {len(edits)} edits are shown)")
    return checks
