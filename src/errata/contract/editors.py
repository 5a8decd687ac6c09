"""What every editor must hold.

Nothing is written, a row is a single edit, no decision sees the answer.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.algorithms.gradient import GradientEditor
from errata.contract._names import named
from errata.core import registry
from errata.core.editor import Editor, EditResult
from errata.core.errors import BadEdit, BadPatch, BadSpec, FingerprintMismatch
from errata.core.model.backbone import Backbone
from errata.core.patch import check_fingerprint, pack, pictures_of, unpack
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt, digest
from errata.io.images import embedded
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.patches.rows import Rows
from errata.patches.stack import stacked


@dataclass
class World:
    """What a check needs: a model, four edits of different lengths, prompts, training cases.

    `settings` keep an editor's search short; `loose` is how far a search in rows may be from one
    made alone. `kept` holds the states and results that several checks need.
    """

    backbone: Backbone
    edits: Sequence[Edit]
    prompts: Sequence[Prompt]
    many: Sequence[Prompt]
    cases: Sequence[Case]
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    loose: float = 2e-3
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)


def bundled(folder: Path, cls: type[Editor]) -> World:
    """A bundled model that can do what the editor needs, on its own benchmark."""
    from errata.backbones import load as load_backbone
    from errata.core.measure.benchmark import BenchmarkSpec

    name = "micro-umm" if "draw" in cls.requires else "micro-vlm"
    benchmark = {"micro-umm": "unike_umm:microworld", "micro-vlm": "microworld:vqa"}[name]
    spec = BenchmarkSpec.parse(f"{benchmark}@train")
    cases = registry.load("benchmarks", spec.name)().load(spec).cases[:40]
    edits = [c.edit for c in cases[:40:10]]
    many = list(itertools.islice((p.prompt for c in cases for p in c.probes), 48))
    return World(load_backbone(name), edits, many[:6], many, cases, folder)


def checks(cls: type[Editor], world: World) -> list[tuple[str, Callable[[], None]]]:
    properties = [f for name, f in globals().items() if name.startswith("holds_")]
    return [(named(f), partial(f, cls(**world.settings), world)) for f in properties]


def weights(backbone: Backbone) -> str:
    """sha256 of every tensor of the model."""
    h = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        h.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _once(editor: Editor, world: World, what: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns for this editor, its settings and the backbone; called once."""
    key = (world.backbone, editor.name, digest(editor.summary["config"]), what)
    if key not in world.kept:
        world.kept[key] = make()
    return world.kept[key]


def _forget(editor: Editor, world: World) -> None:
    for key in [k for k in world.kept if k[:2] == (world.backbone, editor.name)]:
        del world.kept[key]


def _state(editor: Editor, world: World) -> State | None:
    made = _once(editor, world, "state", lambda: editor.prepare(world.backbone, world.cases))
    assert made is None or isinstance(made, State)
    return made


def _edit(editor: Editor, world: World, edits: Sequence[Edit]) -> EditResult:
    """The result of one joint edit of the unedited model."""
    state, what = _state(editor, world), ("edit", *(e.id for e in edits))
    made = _once(editor, world, what, lambda: editor.edit(world.backbone, edits, state))
    assert isinstance(made, EditResult)
    return made


def _edit_rows(editor: Editor, world: World, edits: Sequence[Edit]) -> list[EditResult]:
    """The results of single edits of the unedited model, searched in one batch."""
    states, what = [_state(editor, world)] * len(edits), ("rows", *(e.id for e in edits))
    made = _once(editor, world, what, lambda: editor.edit_rows(world.backbone, edits, states))
    return list(made)


def _answers(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    rows = [0] * len(prompts)
    return backbone.logits(backbone.encode(prompts, rows=rows), rows=torch.tensor(rows))


def _close(a: Tensor, b: Tensor, bound: float, what: str) -> None:
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    off = float((a - b).abs().max())
    assert torch.allclose(a, b, atol=bound, rtol=bound), f"{what}: off by up to {off:.2e}"


def holds_weights(editor: Editor, world: World) -> None:
    """No weight changes, and leaving `applied` gives the same bits as before."""
    bb = world.backbone
    before, clean = weights(bb), _answers(bb, world.prompts)
    _forget(editor, world)  # preparing and searching must happen here
    with bb.applied(_edit(editor, world, world.edits[:1]).patch):
        edited = _answers(bb, world.prompts)
    assert not torch.equal(edited, clean), "the edit changes nothing"
    assert torch.equal(_answers(bb, world.prompts), clean), "the model differs after leaving"
    assert weights(bb) == before, "a weight was written"


def holds_saving(editor: Editor, world: World) -> None:
    """A patch saved is the patch loaded, bit for bit."""
    bb, folder = world.backbone, world.folder / f"saved-{editor.name}"
    state, patch = _state(editor, world), _edit(editor, world, world.edits[:2]).patch
    if state is not None and editor.needs_state:
        store(state)  # where a patch that shares it finds it again
    save(patch, folder)
    loaded = load(folder, bb)
    assert loaded.header.editor == editor.name
    assert loaded.edits == tuple(map(bb.hashed, world.edits[:2]))
    files = {f.name for f in folder.iterdir()}
    assert files == {"patch.json", "patch.safetensors", "edits.jsonl", "README.md"}, files
    with bb.applied(patch):
        one = _answers(bb, world.prompts)
    with bb.applied(loaded):
        assert torch.equal(_answers(bb, world.prompts), one)


def holds_pictures(editor: Editor, world: World) -> None:
    """A patch brings the images that it shows: their files may be gone when it is used."""
    bb, patch = world.backbone, unpack(*pack(_edit(editor, world, world.edits[:2]).patch))
    shown = set(pictures_of(patch))
    with bb.applied(patch):
        for prompt in world.prompts:
            shown |= set(bb.rewritten(prompt).images) - set(prompt.images)
    for image in shown:
        assert embedded(image) == image, f"{image.shown} is not part of the patch"


def holds_fingerprint(editor: Editor, world: World) -> None:
    """A patch names its model, its settings and the style of its prompts, and is refused with
    others.
    """
    patch = _edit(editor, world, world.edits[:1]).patch
    bb = world.backbone
    assert patch.header.fingerprint == bb.fingerprint()
    assert patch.header.config == editor.summary["config"]
    assert patch.header.style == bb.style
    with bb.in_style("easyedit" if bb.style == "raw" else "raw"):
        try:
            bb.check_patch(patch)
        except BadSpec:
            refused = True
        else:
            refused = False
    assert refused == bool(bb.style), "a patch for prompts of another style was accepted"
    other = replace(patch.header, fingerprint="0" * 64)
    try:
        check_fingerprint(other, world.backbone, "patch")
    except FingerprintMismatch:
        return
    raise AssertionError("a patch for another model was accepted")


def holds_one_row(editor: Editor, world: World) -> None:
    """`edit_rows` of one edit equals `edit` of it."""
    bb = world.backbone
    row = _edit_rows(editor, world, world.edits[:1])[0].patch
    one = _edit(editor, world, world.edits[:1]).patch
    with bb.applied(row):
        a = _answers(bb, world.prompts)
    with bb.applied(one):
        assert torch.equal(_answers(bb, world.prompts), a)


def holds_rows(editor: Editor, world: World) -> None:
    """Edits found in rows equal edits found one by one."""
    bb = world.backbone
    rows = _edit_rows(editor, world, world.edits)
    for edit, row in zip(world.edits, rows, strict=True):
        one = _edit(editor, world, [edit]).patch
        with bb.applied(row.patch):
            together = _answers(bb, world.prompts)
        with bb.applied(one):
            _close(together, _answers(bb, world.prompts), world.loose, f"edit {edit.id}")


def holds_asking(editor: Editor, world: World) -> None:
    """Asking ragged prompts in rows equals asking one by one, in scoring and in generation."""
    bb = world.backbone
    found = [f.patch for f in _edit_rows(editor, world, world.edits)]
    prompts = [*world.prompts, *world.prompts[::-1]]
    rows = [i % len(found) for i in range(len(prompts))]
    with bb.applied(Rows(found)):
        batch = bb.encode(prompts, rows=rows)
        logits = bb.logits(batch, rows=torch.tensor(rows))
        said = bb.generate(batch, [6] * len(prompts), rows=torch.tensor(rows))
    for b, (prompt, r) in enumerate(zip(prompts, rows, strict=True)):
        with bb.applied(found[r]):
            one = bb.encode([prompt], rows=[0])
            _close(logits[b], bb.logits(one)[0], 2e-4, prompt.text)
            assert bb.generate(one, [6])[0] == said[b], prompt.text


def holds_loaded_rows(editor: Editor, world: World) -> None:
    """Patches act in rows as they do alone, in whatever order a file holds their tensors."""
    bb = world.backbone
    state = _state(editor, world)
    if state is not None:
        store(state)
    found = [f.patch for f in _edit_rows(editor, world, world.edits)]
    loaded = []
    for i, patch in enumerate(found):
        settings, tensors = pack(patch)
        names = sorted(tensors, reverse=bool(i % 2))
        loaded.append(bb.place(unpack(settings, {name: tensors[name] for name in names})))
    rows = torch.arange(len(found))
    prompts = [e.prompt for e in world.edits]
    together = []
    for patches in (found, loaded):
        with bb.applied(Rows(patches)):
            together.append(bb.logits(bb.encode(prompts, rows=rows.tolist()), rows=rows))
    assert torch.equal(*together), "loaded patches act on other rows or sites"


def holds_joint(editor: Editor, world: World) -> None:
    """A joint edit is one patch that names all its edits."""
    patch = _edit(editor, world, world.edits).patch
    assert patch.edits == tuple(map(world.backbone.hashed, world.edits))


def holds_on_top(editor: Editor, world: World) -> None:
    """A second edit is found on top of the first, and both live together."""
    bb = world.backbone
    first = _edit(editor, world, world.edits[:1])
    with bb.applied(first.patch):
        second = editor.edit(bb, world.edits[1:2], first.state)
    if isinstance(editor, GradientEditor):
        clean = _edit(editor, world, world.edits[1:2])
        pairs = zip(second.patch.parameters(), clean.patch.parameters(), strict=True)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in pairs), (
            "the first edit was not seen"
        )
    both = stacked(first.patch, second.patch)
    assert both.edits == tuple(map(world.backbone.hashed, world.edits[:2]))
    with bb.applied(both):
        _answers(bb, world.prompts)


def holds_sequences(editor: Editor, world: World) -> None:
    """Sequences edited in rows equal sequences edited alone."""
    bb = world.backbone
    lanes = [list(world.edits[:2]), list(world.edits[2:4])]
    firsts = _edit_rows(editor, world, [lane[0] for lane in lanes])
    with bb.applied(Rows([f.patch for f in firsts])):
        seconds = editor.edit_rows(bb, [lane[1] for lane in lanes], [f.state for f in firsts])
    for lane, first, second in zip(lanes, firsts, seconds, strict=True):
        with bb.applied(first.patch):
            alone = editor.edit(bb, lane[1:], first.state)
        with bb.applied(stacked(first.patch, second.patch)):
            together = _answers(bb, world.prompts)
        with bb.applied(stacked(first.patch, alone.patch)):
            _close(together, _answers(bb, world.prompts), world.loose, "second edit")


def holds_decisions(editor: Editor, world: World) -> None:
    """No decision sees the answer: one forward equals feeding the target token by token."""
    bb = world.backbone
    patch = _edit(editor, world, world.edits[:2]).patch
    prompts = [*world.many, *(e.prompt for e in world.edits)]
    assert len(prompts) >= 40
    targets = [["green", "blue ring", "red thing of", "x"][i % 4] for i in range(len(prompts))]
    rows = torch.zeros(len(prompts), dtype=torch.long)
    with bb.applied(patch):
        batch = bb.encode(prompts, targets, rows=rows.tolist())
        with bb.ask(batch, rows=rows) as q:
            at_once = q.scores()
        longest = max(map(len, batch.targets))
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in batch.targets])
        ids = ids.to(batch.ids.device)
        with bb.ask(bb.encode(prompts, rows=rows.tolist()), rows=rows) as q:
            steps = [q.logits[:, :1]] + [q.feed(ids[:, j : j + 1]) for j in range(longest - 1)]
        logp = torch.cat(steps, dim=1).log_softmax(-1)
    for b, scored in enumerate(at_once):
        for j, (token, value) in enumerate(zip(scored.ids, scored.logprobs, strict=True)):
            fed = float(logp[b, j, token])
            assert math.isclose(value, fed, abs_tol=1e-4), (
                f"{prompts[b].text!r}: {value} against {fed}"
            )


def holds_modes(editor: Editor, world: World) -> None:
    """An edit made under `inference_mode` and `autocast` is the same, and can be used outside."""
    bb, edits = world.backbone, world.edits[:1]
    state, plain = _state(editor, world), _edit(editor, world, edits).patch
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        prepared = editor.prepare(bb, world.cases)
        patch = editor.edit(bb, edits, state).patch
        with bb.applied(patch):
            inside = _answers(bb, world.prompts)
    made = [*patch.state_dict().values(), *(prepared.tensors.values() if prepared else ())]
    assert not any(t.is_inference() for t in made), "tensors that work in inference mode only"
    pairs = zip(patch.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "another patch"
    with bb.applied(patch):
        outside = _answers(bb, world.prompts)
    assert torch.equal(inside, outside), "other answers"


#: how the model's own `generate` may cut its forwards
_CUTS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "prompt in pieces": {"prefill_chunk_size": 3},
    "drafted tokens": {"prompt_lookup_num_tokens": 3},
}


def holds_generate(editor: Editor, world: World) -> None:
    """The model's own `generate` answers as errata does, however its forwards are cut.

    A patch that cannot act there is refused, in all of them.
    """
    bb, length = world.backbone, 5
    patch = _edit(editor, world, world.edits[:1]).patch
    model: Any = bb.model
    for prompt in (world.edits[0].prompt, world.prompts[-1]):
        with bb.applied(patch):
            batch = bb.encode([prompt], rows=[0])
            own = bb.generate(batch, [length])[0].ids
            options = {"max_new_tokens": length, "do_sample": False, "pad_token_id": 0}
            for name, cut in {"plain": {}, **_CUTS}.items():
                try:
                    ids = model.generate(**batch.inputs, **options, **cut)[0].tolist()
                except BadPatch:
                    continue
                answer = tuple(ids[batch.ids.shape[1] :])[: len(own)]
                assert answer == own, f"{prompt.text!r}, {name}: {answer}, not {own}"


def holds_empty_target(editor: Editor, world: World) -> None:
    """An empty target is refused."""
    try:
        editor.edit(
            world.backbone, [Edit(world.edits[0].prompt, "  ", id="x")], _state(editor, world)
        )
    except BadEdit:
        return
    raise AssertionError("an empty target was accepted")


def holds_settings(editor: Editor, world: World) -> None:
    """Unknown settings and presets are refused, and every preset is valid."""
    for wrong in ({"no_such_setting": 1}, {"preset": "no-such-preset"}):
        try:
            type(editor)(**wrong)
        except BadSpec:
            continue
        raise AssertionError(f"{wrong} was accepted")
    for preset in editor.presets:
        type(editor)(preset=preset)


def holds_reproducible(editor: Editor, world: World) -> None:
    """The same edit with the same seed is the same patch."""
    state = _state(editor, world)
    one, two = (editor.edit(world.backbone, world.edits[:1], state, seed=3).patch for _ in range(2))
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
