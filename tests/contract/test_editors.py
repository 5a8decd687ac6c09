"""Every property of an editor, over the whole registry, on a random model of a real class.

An editor that cannot take part is skipped by a row of tests/QUARANTINE.md, never silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.core import registry
from errata.core.editor import Editor, State
from errata.core.errors import BadEdit, BadSpec, FingerprintMismatch
from errata.core.patch import load, save
from errata.core.types import Case, Edit, Probe, Prompt
from errata.finding.gradient import GradientEditor
from errata.patches.rows import Rows
from tests import tiny
from tests.contract.test_backbones import weights

EDITORS = registry.names("editors")
FAST: dict[str, dict[str, Any]] = {
    "ft_l": {"steps": 8, "lr": 1e-2},
    "ft_v": {"steps": 8, "lr": 1e-2},
    "lora": {"steps": 8, "lr": 1e-2},
    "tpatcher": {"steps": 8, "memory": 200, "prompts": 20},
    "ike": {"encoder": "backbone"},
}


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> Editor:
    return registry.load("editors", request.param)(**FAST.get(request.param, {}))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cases(edits: list[Edit]) -> list[Case]:
    """Training cases: the edits with two probes each."""
    return [
        Case(
            f"c{i}",
            e,
            (
                Probe("r", e.prompt, "reliability", reference=e.target),
                Probe(
                    "g",
                    e.prompt.with_text("Please: " + e.prompt.text),
                    "t_generality",
                    reference=e.target,
                ),
                Probe(
                    "l",
                    Prompt.of(f"What is the shape of Fact {i}?"),
                    "t_locality",
                    reference="ring",
                ),
                Probe("m", edits[(i + 1) % 4].prompt, "m_locality", reference="red"),
            ),
        )
        for i, e in enumerate(edits)
    ]


@pytest.fixture
def state(editor: Editor, backbone: tiny.HfVlm, cases: list[Case]) -> State | None:
    return editor.prepare(backbone, cases)


def probes(edits: list[Edit]) -> list[Prompt]:
    return [e.prompt for e in edits] + [
        Prompt.of("Which colour is the ring?"),
        edits[0].prompt.with_text("Shape of it?"),
    ]


def answers(
    backbone: tiny.HfVlm, prompts: list[Prompt], rows: list[int] | None = None
) -> torch.Tensor:
    batch = backbone.encode(prompts, rows=rows or [0] * len(prompts))
    return backbone.logits(batch, rows=torch.tensor(rows or [0] * len(prompts)))


def test_weights_stay_and_leaving_is_bit_exact(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    before, clean = weights(backbone), answers(backbone, probes(edits))
    found = editor.edit(backbone, edits[:1], state)
    with backbone.applied(found.patch):
        edited = answers(backbone, probes(edits))
    assert edited.shape != clean.shape or not torch.equal(edited, clean)
    assert torch.equal(answers(backbone, probes(edits)), clean)
    assert weights(backbone) == before


def test_saved_is_loaded_bit_for_bit(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None, tmp_path: Path
) -> None:
    found = editor.edit(backbone, edits[:2], state)
    save(found.patch, tmp_path / "p")
    loaded = load(tmp_path / "p", backbone)
    assert loaded.header.editor == editor.name and loaded.edits == tuple(edits[:2])
    assert {f.name for f in (tmp_path / "p").iterdir()} == {
        "patch.json",
        "patch.safetensors",
        "edits.jsonl",
        "README.md",
    }
    with backbone.applied(found.patch):
        one = answers(backbone, probes(edits))
    with backbone.applied(loaded):
        assert torch.equal(answers(backbone, probes(edits)), one)


def test_another_fingerprint_is_refused(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None, tmp_path: Path
) -> None:
    save(editor.edit(backbone, edits[:1], state).patch, tmp_path)
    other = tiny.llava(layers=3)
    with pytest.raises(FingerprintMismatch) as e:
        load(tmp_path, other)
    assert backbone.fingerprint()[:12] in str(e.value) and other.fingerprint()[:12] in str(e.value)


def test_a_row_equals_a_single_edit(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    prompts = probes(edits)
    rows = editor.edit_rows(backbone, edits, [state] * len(edits))
    only = editor.edit_rows(backbone, edits[:1], [state])
    single = [editor.edit(backbone, [e], state) for e in edits]
    with backbone.applied(only[0].patch):
        first = answers(backbone, prompts)
    with backbone.applied(single[0].patch):
        assert torch.equal(answers(backbone, prompts), first)
    for row, one in zip(rows, single, strict=True):
        with backbone.applied(row.patch):
            together = answers(backbone, prompts)
        with backbone.applied(one.patch):
            alone = answers(backbone, prompts)
        torch.testing.assert_close(together, alone, atol=2e-3, rtol=2e-3)


def test_asking_in_rows_equals_asking_one_by_one(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    """Ragged prompts, with and without images, scored and generated."""
    found = [f.patch for f in editor.edit_rows(backbone, edits, [state] * len(edits))]
    prompts = [*probes(edits), *probes(edits)[::-1]]
    rows = [i % len(found) for i in range(len(prompts))]
    with backbone.applied(Rows(found)):
        batch = backbone.encode(prompts, rows=rows)
        logits = backbone.logits(batch, rows=torch.tensor(rows))
        said = backbone.generate(batch, [6] * len(prompts), rows=torch.tensor(rows))
    for b, (prompt, r) in enumerate(zip(prompts, rows, strict=True)):
        with backbone.applied(found[r]):
            one = backbone.encode([prompt], rows=[0])
            torch.testing.assert_close(logits[b], backbone.logits(one)[0], atol=2e-4, rtol=2e-4)
            assert backbone.generate(one, [6])[0] == said[b]


def test_a_joint_edit_holds_all_edits(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    patch = editor.edit(backbone, edits, state).patch
    assert patch.edits == tuple(edits)


def test_a_second_edit_is_found_on_top_of_the_first(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    first = editor.edit(backbone, edits[:1], state)
    with backbone.applied(first.patch):
        second = editor.edit(backbone, edits[1:2], first.state)
    clean = editor.edit(backbone, edits[1:2], state)
    if isinstance(editor, GradientEditor):
        pairs = zip(second.patch.parameters(), clean.patch.parameters(), strict=True)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    both = first.patch.join(second.patch)
    assert both.edits == tuple(edits[:2])
    with backbone.applied(both):
        answers(backbone, probes(edits))


def test_sequences_in_rows_equal_sequences_alone(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    """Two lanes of two edits, found in rows on top of each lane's own past."""
    lanes = [edits[:2], edits[2:]]
    firsts = editor.edit_rows(backbone, [lane[0] for lane in lanes], [state] * 2)
    with backbone.applied(Rows([f.patch for f in firsts])):
        seconds = editor.edit_rows(backbone, [lane[1] for lane in lanes], [f.state for f in firsts])
    for lane, first, second in zip(lanes, firsts, seconds, strict=True):
        with backbone.applied(first.patch):
            alone = editor.edit(backbone, lane[1:], first.state)
        with backbone.applied(first.patch.join(second.patch)):
            together = answers(backbone, probes(edits))
        with backbone.applied(first.patch.join(alone.patch)):
            torch.testing.assert_close(
                together, answers(backbone, probes(edits)), atol=2e-3, rtol=2e-3
            )


def test_decisions_do_not_see_the_answer(
    editor: Editor,
    backbone: tiny.HfVlm,
    edits: list[Edit],
    state: State | None,
    pictures: list[str],
) -> None:
    """Prompt and target in one forward = prompt, then the target token by token (design 4.1)."""
    patch = editor.edit(backbone, edits[:2], state).patch
    texts = [
        "What is the colour of the thing?",
        "Which shape?",
        "Is it red?",
        "New thing",
        "Tell me the shape of the ring",
    ]
    prompts = [Prompt.of(t, p) for t in texts for p in (*pictures[:4], None)] + [
        e.prompt for e in edits
    ]
    prompts += [Prompt.of(f"{t} {n}", pictures[n]) for n in range(3) for t in texts[:4]]
    targets = [["green", "blue ring", "red thing of", "x"][i % 4] for i in range(len(prompts))]
    assert len(prompts) >= 40
    with backbone.applied(patch):
        batch = backbone.encode(prompts, targets, rows=[0] * len(prompts))
        zeros = torch.zeros(len(prompts), dtype=torch.long)
        with backbone.ask(batch, rows=zeros) as q:
            at_once = q.scores()
        alone = backbone.encode(prompts, rows=[0] * len(prompts))
        longest = max(map(len, batch.targets))
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in batch.targets])
        with backbone.ask(alone, rows=zeros) as q:
            steps = [q.logits[:, :1]] + [q.feed(ids[:, j : j + 1]) for j in range(longest - 1)]
        logp = torch.cat(steps, dim=1).log_softmax(-1)
    for b, scored in enumerate(at_once):
        fed = [float(logp[b, j, t]) for j, t in enumerate(scored.ids)]
        assert scored.logprobs == pytest.approx(fed, abs=1e-4)


def test_an_empty_target_is_refused(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    with pytest.raises(BadEdit, match="empty target"):
        editor.edit(backbone, [Edit(edits[0].prompt, "  ", id="x")], state)


def test_settings_are_checked(editor: Editor) -> None:
    with pytest.raises(BadSpec, match="no setting"):
        type(editor)(no_such_setting=1)
    with pytest.raises(BadSpec, match="no preset"):
        type(editor)(preset="no-such-preset")
    for preset in editor.presets:
        type(editor)(preset=preset)


def test_an_edit_is_reproducible(
    editor: Editor, backbone: tiny.HfVlm, edits: list[Edit], state: State | None
) -> None:
    one, two = (editor.edit(backbone, edits[:1], state, seed=3).patch for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
