"""`doctor`: the sites of a model, the missing ones, and whether errata computes its logits.

With `--classes`: which classes of transformers errata works on, tried on tiny models.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.classes import show_classes
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import print_json
from errata.core.errors import BadSpec

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.model.batch import Batch
    from errata.core.state import State
    from errata.core.types import Prompt

QUESTION, TEXT = "What is shown in this picture?", "What is the capital of France?"


@takes_model(optional=True, draws=True, batches=True)
def doctor(
    model: ModelOptions,
    image: Annotated[
        str | None,
        typer.Option(metavar="F", help="An image for the test; default: a generated one."),
    ] = None,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes",
            help="Instead of a model: try every class of transformers that errata knows, each on a "
            "tiny model with random weights (some seconds a class).",
        ),
    ] = False,
    editors: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="With --classes: the editors to try; default: all."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="With --classes: only these, by class or short name."),
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option(help="Also say what an edit with this editor takes of memory."),
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the sites of a model and compare its logits.

    Compares the logits that errata computes with those of the model's own processor and forward.
    """
    if classes and model.backbone:
        raise BadSpec("--classes tries tiny models of all classes. Leave out the BACKBONE.")
    if not classes and (editors or only):
        raise BadSpec("--editors and --only belong to --classes.")
    if not classes and not model.backbone:
        raise BadSpec("name a BACKBONE to examine, or give --classes.")
    if editor is None and (preset or settings or state or model.memory):
        raise BadSpec("--preset, --set, --state and --memory belong to an editor. Give --editor.")
    if classes and editor:
        raise BadSpec("--editor belongs to a BACKBONE; --classes takes --editors.")
    if classes:
        show_classes(editors, only, as_json=as_json)
        return
    ed = None if editor is None else options.make_editor(editor, preset, settings)
    prepared = None if ed is None else options.load_state(state, ed)
    bb = model.load()
    if image is not None and "image" not in bb.capabilities:
        raise BadSpec(f"{bb.name} takes no images. Leave out --image.")
    with tempfile.TemporaryDirectory() as folder:
        shown = image or str(_picture(Path(folder) / "sample.png"))
        facts = examine(bb, shown)
        if ed is not None:
            facts["memory"] = _memory(bb, ed, prepared, shown)
    print_json(facts) if as_json else options.print_facts(facts)


def examine(bb: Backbone, image: str) -> dict[str, Any]:
    """All findings, JSON-ready."""
    from errata.core.types import Prompt

    prompt = Prompt.of(QUESTION, image) if "image" in bb.capabilities else Prompt.of(TEXT)
    batch = bb.encode([prompt])
    return {
        "name": bb.name,
        "backbone": type(bb).__module__.rsplit(".", 1)[-1],
        "class": type(bb.model).__name__,
        "capabilities": sorted(bb.capabilities),
        "fingerprint": bb.fingerprint(),
        "style": bb.style or "none: the model takes a prompt in one way only",
        "dtype": str(bb.dtype).removeprefix("torch."),
        "device": str(bb.device_of("")),
        "text blocks": bb.depth,
        "width": bb.width,
        "context": bb.context if bb.context < 10**9 else "not stated by the model",
        "parameters": sum(p.numel() for p in bb.model.parameters()),
        "sites": _sites(bb),
        "missing": _folded(bb.missing_sites),
        "sample": _sample(bb, prompt, batch),
        "own forward": _own_forward(bb, prompt, batch),
        **bb.facts(),
    }


def _sites(bb: Backbone) -> dict[str, str]:
    """Site kinds with the number of blocks that have one, and the module path of the first."""
    kinds: dict[str, list[str]] = {}
    for name in bb.hooks.sites:
        kinds.setdefault(_fold(name), []).append(name)
    paths = bb.site_paths
    return {
        kind: f"{len(names)} x {paths.get(names[0], '?')}"
        if len(names) > 1
        else paths.get(kind, "?")
        for kind, names in kinds.items()
    }


def _fold(site: str) -> str:
    return re.sub(r"^(text|vision|draw)\.\d+\.", r"\1.{i}.", site)


def _folded(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[_fold(name)] = counts.get(_fold(name), 0) + 1
    return [f"{kind} ({n} blocks)" if n > 1 else kind for kind, n in counts.items()]


def _sample(bb: Backbone, prompt: Prompt, batch: Batch) -> dict[str, Any]:
    return {
        "prompt shown to the tokenizer": repr(bb.formatted(prompt)),
        "prompt tokens": int(batch.lengths[0]),
        "of them image tokens": int(batch.vision.sum()),
    }


def _own_forward(bb: Backbone, prompt: Prompt, batch: Batch) -> dict[str, Any]:
    """Compares the logits of errata's batch with those of the family's own processor and model.

    At the last prompt token. Without an own processor the model is run on errata's batch.
    """
    import torch

    inputs = dict(bb.processed(prompt) or batch.inputs)
    device = bb.device_of("embed")
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    inputs = {
        k: v.to(bb.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    with torch.no_grad():
        ours = bb.logits(batch)[0, 0]
        theirs = bb.model(**inputs).logits[0, -1].float()
    n = int(batch.lengths[0])
    same = inputs["input_ids"][0].tolist() == batch.ids[0, :n].tolist()
    gap = float((ours.cpu() - theirs.cpu()).abs().max())
    finite = bool(ours.isfinite().all())
    tolerance = 1e-4 if bb.dtype == torch.float32 else 0.1
    return {
        "same tokens": same,
        "largest difference of a logit": f"{gap:.2e}",
        "equal": same and finite and gap <= tolerance,
        "finite": finite,
    }


def _memory(bb: Backbone, ed: Editor, state: State | None, image: str) -> dict[str, Any]:
    """What weights, state, an edit and a question take, and what fits into one batch."""
    from errata.core.model.budget import as_text
    from errata.core.types import Edit, Prompt
    from errata.evaluation.memory.estimate import estimate

    shows = "image" in bb.capabilities and "image" in ed.modalities
    prompt = Prompt.of(QUESTION, image) if shows else Prompt.of(TEXT)
    edit = Edit(prompt, "a grey ramp", "picture" if shows else "France")
    found = estimate(bb, ed, edit, state)
    unknown = "not known: give --state"
    return {
        "editor": ed.name,
        "tokens of the prompt": found.tokens,
        "weights": as_text(found.weights),
        "state": unknown if found.state is None else as_text(found.state),
        "one edit": as_text(found.edit),
        "one question": as_text(found.question),
        "all together": as_text(found.peak),
        "free now": as_text(found.free),
        "fits": found.fits,
        "memory of a batch": as_text(found.budget),
        "edits in a batch of 16": found.edits,
        "questions in a batch of 64": found.questions,
    }


def _picture(path: Path) -> Path:
    import numpy as np
    from PIL import Image as Pillow

    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[None, ::-1]), axis=-1)
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path
