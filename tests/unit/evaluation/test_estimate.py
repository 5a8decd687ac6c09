"""An edit and a question take what is said of them; offloaded weights change nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.core.editor import Editor
from errata.core.measure.protocol import Ask
from errata.core.model.backbone import Backbone
from errata.core.model.memory import allocated_peak
from errata.core.state import State
from errata.core.types import Edit, Probe, Prompt
from errata.evaluation.answers import EXTRA, PromptRequest, ask_all
from errata.evaluation.memory.estimate import estimate, weight_bytes
from tests import locate, tiny

#: rows in a batch: small tensors of other kinds must not count
COUNT = 8
#: what is said may be this far from what is measured
WITHIN = 0.25

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _llama() -> Backbone:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=3000, hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=512, **TOKENS,
    )  # fmt: skip
    torch.manual_seed(0)
    return errata.wrap(LlamaForCausalLM(config).eval(), tiny.tokenizer())


def _gpt2() -> Backbone:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=2000, n_embd=128, n_layer=6, n_head=4, n_positions=256, **TOKENS)
    torch.manual_seed(0)
    return errata.wrap(GPT2LMHeadModel(config).eval(), tiny.tokenizer())


MODELS: dict[str, Callable[[], Backbone]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "llava": lambda: tiny.llava(layers=6, width=192),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Backbone:
    return MODELS[request.param]()


def _edits(bb: Backbone, pictures: list[str]) -> list[Edit]:
    shown = "image" in bb.capabilities
    return [
        Edit(
            Prompt.of("What colour is the ring?", *pictures[:shown]), "green thing", "ring", str(i)
        )
        for i in range(COUNT)
    ]  # fmt: skip


def _near(said: float, measured_mb: float | None, weights: float) -> None:
    assert measured_mb is not None
    measured = measured_mb * 2**20
    assert said + weights == pytest.approx(measured + weights, rel=WITHIN)
    assert said == pytest.approx(measured, rel=1.6 * WITHIN)  # the work alone, without weights


def _made(name: str, bb: Backbone) -> tuple[Editor, State | None]:
    if name == "memit":
        editor = errata.editor(name, steps=2, layers=(1, 2), ridge=0.5, context_templates="none")
        return editor, locate.statistics(bb)
    return errata.editor(name, steps=2, lr=1e-3), None


@pytest.mark.parametrize("name", ["ft_l", "lora", "memit"])
def test_an_edit_takes_what_is_said(name: str, model: Backbone, pictures: list[str]) -> None:
    editor, state = _made(name, model)
    edits = _edits(model, pictures)
    said = editor.need(model, edits, state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        editor.edit_rows(model, edits[:1], [state])  # what is made once, and kept
        with allocated_peak() as peak:
            editor.edit_rows(model, edits, [state] * COUNT)
    kept = 0.0
    if state is not None:  # the factors, which were made before
        kept = sum(t.numel() * t.element_size() for t in state.views.values())
    _near(said - kept, peak.mb, weight_bytes(model) + kept)


def test_questions_take_what_is_said(model: Backbone, pictures: list[str]) -> None:
    edits = _edits(model, pictures)
    asked = [
        PromptRequest(Ask(e.id, Probe(e.id, e.prompt, "reliability", reference=e.target)))
        for e in edits
    ]
    ask_all(model, asked[:1], step=0)
    batch = model.encode([e.prompt for e in edits], [e.target for e in edits])
    said = model.bytes_to_ask(batch, len(batch.targets[0]) + EXTRA)
    with allocated_peak() as peak:
        ask_all(model, asked, step=0)
    _near(said, peak.mb, weight_bytes(model))


def test_an_estimate_says_what_fits(model: Backbone, pictures: list[str]) -> None:
    edit = _edits(model, pictures)[0]
    found = estimate(model, errata.editor("ft_l"), edit)
    assert found.state == 0 and found.fits and (found.edits, found.questions) == (16, 64)
    assert found.peak == found.weights + max(found.edit, found.question)
    model.memory = int(3 * found.edit)
    try:
        less = estimate(model, errata.editor("ft_l"), edit)
        assert less.edits == 2 and less.edit == found.edit
    finally:
        model.memory = None
    memit = estimate(model, errata.editor("memit", layers=(1, 2)), edit)
    width = model.weight("text.1.mlp.down")[0]
    assert memit.state == 2 * 4 * width**2, "two moments in float32, known without the state"


def test_the_state_that_is_given_is_counted() -> None:
    bb = tiny.shared("llava")
    state = State("serac", {}, {"a": torch.zeros(10, 3), "b": torch.zeros(4, dtype=torch.float16)})
    assert errata.editor("serac").state_need(bb, state) == 128
    assert errata.editor("serac").state_need(bb, None) is None


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_edits_and_answers(
    where: str, tmp_path: Path, pictures: list[str]
) -> None:
    from accelerate import cpu_offload, disk_offload

    def results(bb: Any) -> tuple[Any, Any]:
        edits = _edits(bb, pictures)[:2]
        edits = [Edit(e.prompt, t, id=t) for e, t in zip(edits, ("green", "red"), strict=True)]
        patch = errata.editor("ft_l", steps=3, lr=1e-2).edit(bb, edits[:1]).patch
        with bb.applied(patch):
            answers = ask_all(
                bb,
                [PromptRequest(Ask(e.id, Probe("q", e.prompt, "reliability", reference=e.target)))
                 for e in edits],
                step=0,
            )  # fmt: skip
        return patch, [(a.ids, a.reference and a.reference.logprobs) for a in answers]

    whole, said = results(tiny.llava())
    parts, processor = tiny.llava_parts()
    if where == "cpu":
        cpu_offload(parts, execution_device=torch.device("cpu"))
    else:
        disk_offload(parts, str(tmp_path / "off"), execution_device=torch.device("cpu"))
    offloaded = errata.wrap(parts, processor, name="tiny-llava")
    patch, said_offloaded = results(offloaded)
    assert said_offloaded == said
    for site in whole.sites:
        for name, tensor in whole.part(site).items():
            assert torch.equal(tensor, patch.part(site)[name])
    assert weight_bytes(offloaded) == weight_bytes(tiny.llava()), "wherever they are"
