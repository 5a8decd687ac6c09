"""What errata must do on a class of models, and which editors can act on it.

Run over the zoo of tiny models (`errata.testing.zoo`) by the tests and by `errata doctor
--classes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pillow

from errata.algorithms.locate_then_edit.value_search import ColumnShift
from errata.contract._names import named
from errata.contract.editors import weights
from errata.core import registry
from errata.core.errors import Notice, UserError
from errata.core.model.backbone import Backbone
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.testing.small_settings import SMALL_SETTINGS

#: largest difference of a logit, relative and absolute, float32
CLOSE = 1e-4


@dataclass(frozen=True)
class ClassReport:
    """status: `works`, `partly` (some editors refuse the class), `refused` (errata does not load
    it), `absent` (the class or what its processor needs is not installed), or `fails` (a property
    does not hold). reason: the line of a refusal, or what fails. editors: editor -> "" or why it
    cannot act.
    """

    status: Literal["works", "partly", "refused", "absent", "fails"]
    reason: str = ""
    editors: Mapping[str, str] = field(default_factory=dict)


def editors_for(bb: Backbone) -> list[str]:
    """The editors that a model like this one can have: what it takes and what it can do."""
    classes = registry.usable("editors")
    return [
        n
        for n, c in classes.items()
        if c.requires <= bb.capabilities
        and ("text" in c.modalities or c.modalities & bb.capabilities)
    ]


def pictures(folder: Path) -> list[str]:
    """Three pictures of different sizes and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(3), []
    for height, width in ((28, 28), (56, 28), (40, 60)):
        path = folder / f"{height}x{width}.png"
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(path)
        paths.append(str(path))
    return paths


def prompts(bb: Backbone, folder: Path) -> list[Prompt]:
    """Questions of several lengths; with pictures of several sizes, and one without a picture."""
    texts = ["What colour is the thing?", "Which shape?", "The ring of the blue thing is", "It"]
    if "image" not in bb.capabilities:
        return [Prompt.of(t) for t in texts]
    shown = pictures(folder)
    asked = [Prompt.of(t, p) for t, p in zip(texts, shown, strict=False)]
    return [*asked, Prompt.of(texts[0], shown[1]), Prompt.of(texts[3])]


def holds_own_forward(bb: Backbone, folder: Path) -> None:
    """The logits are those of the model's own processor and forward."""
    for prompt in prompts(bb, folder):
        own: Any = bb.processed(prompt)
        with torch.no_grad():
            batch = bb.encode([prompt])
            assert own["input_ids"][0].tolist() == batch.ids[0].tolist(), (
                f"{prompt.text!r}: other tokens than those of the model's processor"
            )
            ours = bb.logits(batch)[0, 0]
            if prompt.images or "image" not in bb.capabilities:
                theirs = bb.model(**own).logits[0, -1].float()
                _close(ours, theirs, f"{prompt.text!r}: logits")


def holds_own_generation(bb: Backbone, folder: Path) -> None:
    """The answer is the one that the model's own `generate` gives."""
    backbone: Any = bb
    for prompt in prompts(bb, folder):
        if "image" in bb.capabilities and not prompt.images:
            continue
        own: Any = {k: v for k, v in dict(bb.processed(prompt) or {}).items() if k != "labels"}
        with torch.no_grad(), bb.ask(bb.encode([prompt])) as question:
            ours = list(question.greedy([6], [True])[0].ids)
            out = backbone.model.generate(**own, max_new_tokens=6, do_sample=False)
        theirs = out[0].tolist()
        size = own["input_ids"].shape[1]
        theirs = theirs[size:] if theirs[:size] == own["input_ids"][0].tolist() else theirs
        ends = [i for i, token in enumerate(theirs) if token in backbone.end_ids]
        assert ours == theirs[: min([*ends, 6])], f"{prompt.text!r}: {ours}, generate: {theirs}"


def holds_continuations(bb: Backbone, folder: Path) -> None:
    """Tokens that are fed after a prompt get the logits that they get in one forward."""
    asked = prompts(bb, folder)
    whole = bb.encode(asked, ["green ring"] * len(asked))
    size = min(map(len, whole.targets))
    with torch.no_grad(), bb.ask(bb.encode(asked)) as question:
        ids = torch.tensor([t[:size] for t in whole.targets], device=whole.ids.device)
        _close(question.feed(ids), bb.logits(whole)[:, 1 : size + 1], "logits of fed tokens")


def holds_batches(bb: Backbone, folder: Path) -> None:
    """A batch with pictures of several sizes gives the logits and answers of single prompts."""
    asked = prompts(bb, folder)
    targets = ["green", "blue ring", "", "ring", "red"][: len(asked)]
    _as_alone(bb, asked, targets)


def holds_several_pictures(bb: Backbone, folder: Path) -> None:
    """A prompt with two pictures is answered as the model does, or refused in one line."""
    if "image" not in bb.capabilities:
        return
    shown = pictures(folder)
    both = Prompt((Image.of(shown[0]), Image.of(shown[1]), "Which ring?"))
    try:
        batch = bb.encode([both])
    except UserError:
        return
    own: Any = bb.processed(both)
    with torch.no_grad():
        theirs = bb.model(**own).logits[0, -1].float()
        _close(bb.logits(batch)[0, 0], theirs, "two pictures: logits")
    _as_alone(bb, [both, Prompt.of("It", shown[2])], ["green", "red"])


def holds_resume(bb: Backbone, folder: Path) -> None:
    """A forward that is resumed at any block equals a whole one."""
    asked = prompts(bb, folder)
    batch = bb.encode(asked, ["green"] * len(asked))
    with torch.no_grad():
        whole = bb.logits(batch)
        said = bb.generate(batch, [4] * len(asked))
        for layer in range(-1, bb.depth):
            state = bb.enter(batch, layer, for_generation=True)
            _close(bb.resume(state, None), whole, f"resumed at block {layer}")
            with bb.ask(state) as question:
                assert question.greedy([4] * len(asked)) == said, f"answers at block {layer}"


def holds_suffixes(bb: Backbone, folder: Path) -> None:
    """Where earlier columns can be finished, a change at one column gives the logits of whole rows.

    With a change of each row's own column, at every block but the first.
    """
    asked = prompts(bb, folder)
    batch = bb.encode(asked, ["green", "blue ring", "", "ring", "red"][: len(asked)])
    ends = batch.lengths + torch.tensor([len(t) for t in batch.targets], device=batch.ids.device)
    back = torch.arange(1, len(asked) + 1, device=ends.device)
    first = (ends - back).clamp(min=0).minimum(batch.lengths - 1)
    rng = torch.Generator().manual_seed(0)
    delta = torch.randn(1, bb.width, generator=rng)
    with torch.no_grad():
        for layer in range(1, bb.depth):
            state = bb.enter(batch, layer)
            suffix = bb.suffix(state, first)
            if suffix is None:
                continue
            shift = ColumnShift([f"text.{layer}.mlp"], first, torch.zeros_like(first))
            shift.delta = {f"text.{layer}.mlp": delta}
            with bb.applied(shift):
                whole = bb.logits(state)
                shift.columns_B = torch.zeros_like(first)
                part = bb.logits(suffix)
            for b, target in enumerate(batch.targets):
                read = slice(max(0, int(first[b] - batch.lengths[b]) + 1), len(target) + 1)
                _close(part[b, read], whole[b, read], f"row {b} from column {first[b]}, {layer}")


def checks(bb: Backbone, folder: Path) -> list[tuple[str, Callable[[], None]]]:
    """(property, function that raises AssertionError where it does not hold)."""
    properties = [f for name, f in globals().items() if name.startswith("holds_")]
    return [(named(f), partial(f, bb, folder)) for f in properties]


def try_editor(name: str, bb: Backbone, folder: Path, **settings: Any) -> None:
    """Edits, saves, loads and undoes. Raises UserError where the editor refuses the model.

    settings: of the editor, besides the small ones.
    """
    asked = prompts(bb, folder)
    edit = Edit(asked[0], "green", "thing", id="zoo")
    cls = registry.load("editors", name)
    editor = cls(**{**SMALL_SETTINGS.get(name, {}), **settings})
    before, clean = weights(bb), bb.logits(bb.encode(asked))
    state = editor.prepare(bb, _cases(asked))
    if state is not None and editor.needs_state:
        store(state)  # where a patch that shares it finds it again
    with warnings.catch_warnings():  # what is said of few steps on a random model is no news
        warnings.simplefilter("ignore", Notice)
        patch = editor.edit(bb, [edit], state).patch
    with bb.applied(patch):
        edited = bb.logits(bb.encode(asked))
    assert not torch.equal(edited, clean), f"{name}: the edit changes nothing"
    assert bool(edited.isfinite().all()), f"{name}: not finite"
    save(patch, folder / name)
    with bb.applied(load(folder / name, bb)):
        assert torch.equal(bb.logits(bb.encode(asked)), edited), f"{name}: saved and loaded"
    assert torch.equal(bb.logits(bb.encode(asked)), clean), f"{name}: not undone"
    assert weights(bb) == before, f"{name}: a weight was written"


def report(bb: Backbone, folder: Path, editors: Sequence[str]) -> ClassReport:
    """All properties of a model that was loaded, and these editors on it."""
    tried: dict[str, str] = {}
    try:
        for _, check in checks(bb, folder):
            check()
        for name in editors:
            try:
                try_editor(name, bb, folder)
                tried[name] = ""
            except UserError as e:
                tried[name] = str(e)
    except (AssertionError, UserError) as e:
        return ClassReport("fails", str(e), tried)
    return ClassReport("partly" if any(tried.values()) else "works", "", tried)


def _cases(asked: Sequence[Prompt]) -> list[Case]:
    cases = []
    for i in range(12):
        prompt = asked[i % len(asked)]
        edit = Edit(prompt, ["green", "red", "blue ring"][i % 3], "thing", id=f"c{i}")
        probes = (
            Probe("r", prompt, "reliability", reference=edit.target),
            Probe("g", prompt.with_text("Please: x"), "t_generality", reference=edit.target),
            Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
            Probe("m", asked[(i + 1) % len(asked)], "m_locality", reference="red"),
        )
        cases.append(Case(edit.id, edit, probes, origin="correction"))
    return cases


def _as_alone(bb: Backbone, asked: Sequence[Prompt], targets: Sequence[str]) -> None:
    batch = bb.encode(asked, targets)
    with torch.no_grad():
        together = bb.logits(batch)
        said = bb.generate(batch, [5] * len(asked))
        for b, (prompt, target) in enumerate(zip(asked, targets, strict=True)):
            one = bb.encode([prompt], [target])
            alone = bb.logits(one)[0]
            _close(together[b, : len(alone)], alone, f"{prompt.text!r} in a batch")
            assert bb.generate(one, [5])[0] == said[b], f"{prompt.text!r}: another answer"


def _close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    gap = float((ours.cpu() - theirs.cpu()).abs().max())
    assert torch.allclose(ours.cpu(), theirs.cpu(), atol=CLOSE, rtol=CLOSE), (
        f"{what} differ by {gap:.1e}"
    )
