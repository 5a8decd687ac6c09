"""`patch verify`: checks patches and, on their model, the answers of their edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import patches
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.options import bundled_models
from errata.cli.shared.printing import fall_short, say
from errata.core.errors import BadBackbone, BadImage, BadPatch, BadSpec
from errata.core.formats.counts import counted

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch
    from errata.evaluation.verify import EditCheck

SHOWN = 20
FIRST = "The first of several arguments is the model, unless it is a patch."


def verify(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="[BACKBONE] DIR...",
            help="A model, then folders with patch.json or names on the Hub, in order. Without a "
            "model only the files are checked.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="The model, if it is not the first argument."),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="The file that the edits were made from: its other questions are asked too.",
        ),
    ] = None,
) -> None:
    """Check that patches and their pictures are unchanged and, with a model, that the edits hold.

    All patches are applied together. Ends with exit code 3 if a question does not have the answer
    that it should have, or cannot be asked.
    """
    name, texts = _model_and_patches(given, backbone)
    if facts is not None and name is None:
        raise BadSpec("--facts asks a model. Name it: errata patch verify BACKBONE DIR --facts F.")
    folders = patches.located(texts)
    bb = None if name is None else _loaded(name, [p.head() for p in folders], backbone is None)
    loaded, lost = [p.load(bb) for p in folders], []
    for folder, patch in zip(folders, loaded, strict=True):
        check_numbers(patch, folder)
        say(f"{folder}: undamaged, {counted(len(patch.edits), 'edit')}, {_places(patch)}")
        problems = [reason for e in patch.edits for reason in _image_problems(e)]
        for reason in problems:
            say(f"image: {reason}")
        lost += problems
    if facts is None and not any(patch.edits for patch in loaded):
        say("no edits in it: no question is asked. --facts FILE.jsonl names some")
    if bb is not None:
        lost += [str(c) for c in ask_edits(bb, loaded, facts) if not c.kept]
    if lost:
        what = f"{folders[0]} does" if len(folders) == 1 else f"{len(folders)} patches together do"
        fall_short(f"{what} not hold: {lost[0].rstrip('.')}.")


def _model_and_patches(given: Sequence[str], backbone: str | None) -> tuple[str | None, list[str]]:
    """The model and the patches; the first of several arguments is a model unless it is a patch.

    Raises BadSpec or BadPatch where it is not clear which is which.
    """
    texts = list(given)
    models = [t for t in texts if _is_model(t)]
    if backbone is not None:
        if models:
            raise BadSpec(
                f"two models are given: '{models[0]}' and --backbone {backbone}. Give one of them."
            )
        return backbone, texts
    if len(texts) == 1 and models:
        raise BadSpec(f"'{texts[0]}' is a model. Give the patches behind it: DIR...")
    if len(texts) == 1 or _is_patch(texts[0]):
        if models:
            raise BadSpec(
                f"'{models[0]}' is a model, not a patch. Name it first: errata patch verify "
                f"{models[0]} DIR..."
            )
        return None, texts
    if _is_folder(texts[0]) and texts[0] not in models:
        raise BadPatch(
            f"{texts[0]} is neither a patch nor a model: it has no patch.json and no config.json. "
            f"{FIRST}"
        )
    if further := [t for t in texts[1:] if t in models]:
        raise BadSpec(f"two models are given: '{texts[0]}' and '{further[0]}'. {FIRST}")
    return texts[0], texts[1:]


def _is_model(text: str) -> bool:
    from errata.core.files import exists

    if exists(Path(text) / "patch.json"):
        return False
    return exists(Path(text) / "config.json") or text in bundled_models()


def _is_patch(text: str) -> bool:
    from errata.core.files import exists
    from errata.io.hub import SCHEME, hub_name

    name = hub_name(text)
    if name is not None:  # a bare name is taken for a model; a revision only patches have here
        return text.startswith(SCHEME) or name.revision is not None
    return any(exists(Path(text) / file) for file in ("patch.json", ".ready"))


def _is_folder(text: str) -> bool:
    from errata.core.files import is_dir

    return is_dir(Path(text))


def _loaded(name: str, heads: Sequence[Any], first: bool) -> Backbone:
    try:
        return ModelOptions(name).load(heads)
    except BadBackbone as e:
        raise BadBackbone(f"{e} {FIRST}" if first else str(e)) from None


def check_numbers(patch: Patch, what: object) -> None:
    """Raises BadPatch for a patch with NaN or infinite numbers."""
    not_finite = [k for k, v in patch.state_dict().items() if not bool(v.isfinite().all())]
    if not_finite:
        raise BadPatch(f"{what} holds NaN or infinite numbers in {', '.join(not_finite[:3])}.")


def _places(patch: Patch) -> str:
    sites = sorted(patch.sites)
    shown = ", ".join(sites[:4]) or "none"
    return f"sites {shown}{f' and {len(sites) - 4} more' if len(sites) > 4 else ''}"


def ask_edits(bb: Backbone, loaded: Sequence[Patch], facts: Path | None) -> list[EditCheck]:
    """The edited questions of patches, asked together on their model; the outcome is printed."""
    from errata.evaluation.verify import summary
    from errata.evaluation.verify import verify as asked

    say(f"made for {bb.name} ({bb.fingerprint()[:12]})")
    checks = asked(bb, loaded, facts)
    for line in summary(checks):
        say(line)
    for check in checks:
        if not check.kept:
            what = "lost" if check.probe.kind_info.main else check.probe.kind
            say(f"{what}: {check}")
    held = [c for c in checks if c.kept and c.probe.kind_info.main]
    for check in held[:SHOWN]:
        say(f"held: {check}")
    return checks


def _image_problems(edit: Any) -> list[str]:
    from errata.io.images import hash_image

    problems = []
    for image in edit.prompt.images:
        try:
            if image.sha256 is not None and hash_image(image) != image.sha256:
                problems.append(f"{image.shown} has changed since the edit was made")
        except BadImage as e:
            problems.append(str(e))
    return problems
