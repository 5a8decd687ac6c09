"""`analyze`: analyse a model, an edit or a state; writes plots (SVG) and numbers (CSV)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options, patches
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import say
from errata.core.errors import BadSpec, MissingState

if TYPE_CHECKING:
    from errata.core.analysis import Analysis, Split, Subject
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.state import State


@takes_model(draws=True)
def analyze(
    analysis: Annotated[
        str, typer.Argument(metavar="ANALYSIS", help="See `errata list analyses`.")
    ],
    model: ModelOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for SVG and CSV files.")],
    editor: Annotated[
        str | None,
        typer.Option(
            "--editor", help="The editor that makes the edits; default: the editor of --state."
        ),
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    patch: patches.Applied = None,
    benchmark: Annotated[
        str | None, typer.Option(help="name[:task[+task]][@split][/variant].")
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="K=V", help="A setting of the analysis, see `errata show analysis`."
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer", help="Only this block; negative: counted from the end; repeatable."
        ),
    ] = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    rows: options.RowsOption = 16,
    root: options.Root = None,
) -> None:
    """Analyse a model, an edit or a state: plots and CSV files.

    Cases are taken from the benchmark in order; they are not filtered by the model's answers.
    """
    look = make_analysis(analysis, own, layer)
    from errata.core.locks import locked
    from errata.figures.plots import check_out, write_findings

    check_out(out, look.name)
    _check_patches(look, patch, editor)
    given = patches.located(patch)
    ed = _editor(look, editor, preset, settings, state)
    prepared = options.load_state(state, ed) if ed is not None else None
    cases, spec = _cases(look, benchmark, root=root, seed=seed, limit=limit)
    bb = model.load([p.head() for p in given])
    from errata.cli.shared.progress import reporting
    from errata.core.analysis import Subject

    loaded = tuple(p.load(bb) for p in given)
    if ed is not None:
        ed = ed.for_backbone(bb)
        prepared = _state_of(ed, bb, prepared)
    with locked(out, name=look.name):
        with reporting() as progress:
            split = _other_split(spec, root, seed)
            subject = Subject(bb, cases, spec, ed, prepared, seed, rows, progress, split, loaded)
            findings = look.look(subject)
        for line in findings.said:
            say(line)
        about = _about(look, subject, limit, _passed(own, layer))
        for path in write_findings(findings, out, look.name, about):
            say(path)


def make_analysis(name: str, pairs: list[str] | None, layers: list[int] | None) -> Analysis:
    """The analysis with its settings. Raises UnknownName or BadSpec, before a model is loaded."""
    from errata.core import registry

    cls = registry.load("analyses", name)
    analysis: Analysis = cls(**_passed(pairs, layers))
    return analysis


def _check_patches(look: Analysis, given: list[str] | None, editor: str | None) -> None:
    """Raises BadSpec where an analysis or an editor takes no patch."""
    if given and not look.takes_patch:
        raise BadSpec(f"analysis '{look.name}' takes no patch. Leave out --patch.")
    if given and editor is not None:
        raise BadSpec("--patch is a saved edit, --editor makes edits. Give one of them.")


def _passed(pairs: list[str] | None, layers: list[int] | None) -> dict[str, Any]:
    """The analysis' settings from --with and --layer."""
    passed = options.parse_settings(pairs, option="--with")
    if layers:
        if "layers" in passed:
            raise BadSpec("--layer and --with layers are the same setting. Give one of them.")
        passed["layers"] = layers
    return passed


def _editor(
    look: Analysis,
    name: str | None,
    preset: str | None,
    settings: list[str] | None,
    state: str | None,
) -> Editor | None:
    """The editor called `name`, else the editor of the state."""
    if name is None and state is not None:
        from errata.core.files import is_dir
        from errata.core.state import State

        folder = Path(state)
        if not is_dir(folder):
            raise MissingState(
                f"there is no state in {state}. Give its folder, or name its --editor too, to find "
                "it by its hash."
            )
        name = State.load(folder).editor
    if name is None:
        if preset or settings:
            raise BadSpec("--set and --preset are settings of an editor. Name it with --editor.")
        if look.from_state:
            raise MissingState(
                f"analysis '{look.name}' needs an editor's state. Give --state DIR, which "
                "`errata prepare` writes, or --editor NAME for the one that comes with the model."
            )
        return None
    return options.make_editor(name, preset, settings)


def _cases(
    look: Analysis, benchmark: str | None, *, root: Path | None, seed: int, limit: int | None
) -> tuple[tuple[Any, ...], str]:
    from errata.core import registry
    from errata.core.measure.benchmark import BenchmarkSpec

    text = benchmark or look.default
    if not text:
        return (), ""
    spec = BenchmarkSpec.parse(text)
    loaded = registry.load("benchmarks", spec.name)().load(spec, root=root, seed=seed)
    return loaded.cases[:limit], str(spec)


def _other_split(spec: str, root: Path | None, seed: int) -> Split:
    from dataclasses import replace

    from errata.core import registry
    from errata.core.analysis import no_split
    from errata.core.measure.benchmark import BenchmarkSpec
    from errata.core.types import Case

    def cases(split: str) -> tuple[Case, ...]:
        other = BenchmarkSpec.parse(str(replace(BenchmarkSpec.parse(spec), split=split)))
        loaded = registry.load("benchmarks", other.name)().load(other, root=root, seed=seed)
        return tuple(loaded.cases)

    return cases if spec else no_split


def _state_of(editor: Editor, backbone: Backbone, state: State | None) -> State | None:
    """The state to analyse. Raises FingerprintMismatch if it was made for another model."""
    if state is None:
        return editor.shipped_state(backbone) if editor.uses_state else None
    backbone.check_state(state, f"the state of '{editor.name}'")
    return state


def _about(
    look: Analysis, subject: Subject, limit: int | None, passed: dict[str, Any]
) -> dict[str, Any]:
    """What is needed to repeat the analysis."""
    from dataclasses import asdict

    from errata.core.files import versions

    ed, state = subject.editor, subject.state
    return {
        "schema": 1,
        "analysis": look.name,
        "settings": asdict(look.config),
        "arguments": passed,
        "backbone": subject.backbone.name,
        "fingerprint": subject.backbone.fingerprint(),
        "editor": None if ed is None else {"name": ed.name, **ed.summary},
        "state": "" if state is None else state.digest(),
        "patches": [asdict(p.header) for p in subject.patches],
        "benchmark": subject.benchmark,
        "limit": limit,
        "seed": subject.seed,
        "versions": versions(),
    }
