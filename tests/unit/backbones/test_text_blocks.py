"""Models whose text blocks are not all an attention over the text's own columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.backbones._text_blocks import cross
from errata.backbones._text_blocks.recurrent import is_cacheable, with_targets
from errata.core.errors import BadSpec
from errata.core.model.recorder import outputs_at
from errata.core.types import Edit, Prompt
from errata.editors.ft_l import FtL
from errata.editors.visedit import VisEdit
from errata.testing import class_checks as classes
from errata.testing import zoo

#: answered without a KV cache
RECURRENT = ("qwen3_5", "lfm2_vl", "mllama")


@pytest.mark.parametrize("name", RECURRENT)
def test_continuations_are_those_of_one_forward(name: str, tmp_path: Path) -> None:
    bb = zoo.loaded(name)
    assert not is_cacheable(bb.text, bb.blocks)
    asked = classes.prompts(bb, tmp_path)
    targets = ["green", "blue ring", "", "ring", "red"][: len(asked)]
    batch = bb.encode(asked, targets)
    with bb.ask(bb.encode(asked)) as question:
        scored = question.score(batch.targets)
        fed = torch.tensor([[5, 9]] * len(asked))
        first, second = question.feed(fed), question.feed(fed)
    with bb.ask(batch) as question:
        assert [s.ids for s in question.scores()] == [s.ids for s in scored]
        for a, b in zip(question.scores(), scored, strict=True):
            torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs))
    whole = bb.logits(with_targets(batch, [[5, 9, 5, 9]] * len(asked)))
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole[:, 1:])
    with bb.ask(bb.encode(asked)) as question:  # a model may say the token of its images
        assert question.feed(torch.full((len(asked), 1), bb.image_id)).isfinite().all()


@pytest.mark.parametrize("name", RECURRENT)
def test_a_patch_acts_in_a_continuation_without_a_cache(name: str, tmp_path: Path) -> None:
    """Also in one that goes on from a state."""
    bb = zoo.loaded(name)
    asked = classes.prompts(bb, tmp_path)
    patch = FtL(steps=8, lr=1e-2).edit(bb, [Edit(asked[0], "green", "thing", id="x")]).patch
    state = bb.enter(bb.encode(asked), 2, for_generation=True)
    with bb.applied(patch):
        batch = bb.encode(asked, ["zq"] * len(asked))
        said = bb.generate(bb.encode(asked), [4] * len(asked))
        with bb.ask(state) as question:
            assert question.greedy([4] * len(asked)) == said
        again = bb.generate(batch, [4] * len(asked))
    assert again == said
    assert said[0].ids[: len(batch.targets[0])] or said[0].stopped


def test_targets_are_replaced_and_the_prompt_stays(tmp_path: Path) -> None:
    bb = zoo.loaded("mllama")
    asked = classes.prompts(bb, tmp_path)
    targets = ["green", "blue ring", "ring", "red"][: len(asked)]
    targets += [""] * (len(asked) - len(targets))
    with_them, without = bb.encode(asked, targets), bb.encode(asked)
    for given in (with_them, without):
        made = with_targets(given, with_them.targets)
        assert made.targets == with_them.targets
        for key, value in with_them.inputs.items():
            mask = with_them.mask.bool()
            if key in ("input_ids", cross.MASK):
                assert torch.equal(made.inputs[key][mask], value[mask]), key
            else:
                assert torch.equal(made.inputs[key], value), key


def test_the_columns_of_a_picture_are_those_of_the_processor(tmp_path: Path) -> None:
    """A run of pictures is read as a whole; an earlier one up to the next."""
    from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask as runs

    ids, tiles = [1, 9, 9, 5, 6, 9, 7, 8], [1, 2, 3]
    own = runs(ids, 9)
    mask = cross._mask([ids], 9, [tiles], 4)[0]
    for n, (start, end) in enumerate(own):
        assert mask[start:end, n, : tiles[n]].all()
        assert int(mask[:, n].sum()) == (end - start) * tiles[n]


def test_a_row_without_pictures_reads_nothing(tmp_path: Path) -> None:
    """In a batch with pictures and alone: the block gives back what it gets."""
    bb = zoo.loaded("mllama")
    shown = Prompt.of("Which?", classes.pictures(tmp_path)[0])
    for asked in ([Prompt.of("Which?"), shown], [Prompt.of("Which?")]):
        batch = bb.encode(asked)
        assert not batch.vision.any()
        states = outputs_at(bb, batch, ["text.1.in", "text.1.block"])
        n = int(batch.lengths[0])
        torch.testing.assert_close(states["text.1.in"][0, :n], states["text.1.block"][0, :n])


def test_experts_are_named_where_a_site_is_missing() -> None:
    moe = zoo.loaded("qwen3_vl_moe")
    with pytest.raises(BadSpec, match=r"no site 'text.1.mlp.down': .* mixture of experts"):
        moe.site("text.1.mlp.down")
    shared = zoo.loaded("llama4")  # an expert that every token runs through
    assert shared.site_paths["text.1.mlp.down"].endswith("feed_forward.shared_expert.down_proj")
    gated = zoo.loaded("qwen3_5_moe")  # its shared expert is scaled by a gate
    assert "text.1.mlp.down" not in gated.hooks.sites


def test_tokens_that_are_never_answered() -> None:
    bb = zoo.loaded("chameleon")
    never = [i for token, i in bb.tokenizer.get_vocab().items() if token.startswith("IMGIMG")]
    assert sorted(bb.suppressed) == sorted(never)
    assert bb.logits(bb.encode([Prompt.of("Which?")]))[0, 0, never].max() < -1e30


def test_an_editor_of_image_tokens_needs_them_in_the_stream(tmp_path: Path) -> None:
    bb = zoo.loaded("mllama")
    edit = Edit(Prompt.of("Which?", classes.pictures(tmp_path)[0]), "green", "thing", id="x")
    reason = VisEdit().unfit(bb, [edit])
    assert reason is not None and "image tokens" in reason


def test_blocks_without_a_part_are_left_out_where_all_blocks_are_meant() -> None:
    bb = zoo.loaded("qwen3_5")
    assert bb.part_sites((), ("attn.q", "mlp.up")) == [
        *("text.0.mlp.up", "text.1.attn.q", "text.1.mlp.up"),
        *("text.2.mlp.up", "text.3.attn.q", "text.3.mlp.up"),
    ]
    assert bb.part_sites((0,), ("attn.q",)) == ["text.0.attn.q"]  # is refused where it is used
    assert bb.part_sites((), ("attn.none",))[0] == "text.0.attn.none"


def test_an_activation_that_only_the_forward_names() -> None:
    bb = zoo.loaded("lfm2_vl")
    assert not any(hasattr(bb.text_config, f) for f in ("hidden_act", "activation"))
    assert bb.activation("text.1.mlp") == "silu"
