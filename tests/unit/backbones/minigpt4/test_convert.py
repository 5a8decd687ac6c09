"""`errata convert minigpt4`: a model that is published scaled down, and the names at real size."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.backbones.minigpt4 import convert as conversion
from errata.backbones.minigpt4 import names
from errata.backbones.minigpt4.convert import Published, convert
from errata.core import files
from errata.core.errors import BadBackbone, BadOutput, BadSpec, DiskFull
from errata.core.types import Image, Prompt
from errata.testing.class_checks import pictures
from tests import published
from tests.published import REAL, SMALL, Reference

HEADS = {"vit_heads": SMALL.tower_heads, "qformer_heads": SMALL.qformer_heads}
ASKED = "###Human: <Img><ImageHere></Img> {}###Assistant: "
QUESTION = "What colour is the thing?"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published.save_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def folder(parts: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(parts, out, shard=50_000, **HEADS)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return pictures(tmp_path_factory.mktemp("shown"))


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference; ours has one word more, the image token."""
    return float((ours[: len(theirs), : theirs.shape[1]] - theirs).detach().abs().max())


def test_it_answers_like_the_parts_wired_by_hand(parts, folder, shown) -> None:
    bb, reference = errata.load(folder, dtype="float64"), Reference(parts)
    for picture in shown:
        batch = bb.encode([Prompt.of(QUESTION, picture)], ["green"])
        wanted = reference.logits(ASKED.format(QUESTION), [picture], "green")
        assert len(batch.targets[0]) + 1 == len(wanted)
        assert _gap(bb.logits(batch)[0], wanted) < 1e-5
        said = bb.generate(batch, [6])[0]
        told = reference.says(ASKED.format(QUESTION), [picture], 6)
        assert list(said.ids) == told[: len(said.ids)] and (said.stopped or len(said.ids) == 6)


def test_single_precision_is_as_near_as_its_rounding(parts, folder, shown) -> None:
    bb, reference = errata.load(folder), Reference(parts)
    wanted = reference.logits(ASKED.format(QUESTION), shown[:1], "green")
    assert bb.dtype == torch.float32
    assert _gap(bb.logits(bb.encode([Prompt.of(QUESTION, shown[0])], ["green"]))[0], wanted) < 1e-4


def test_each_part_of_the_prompt_counts(parts, folder, shown) -> None:
    """The reference without one of them is far away: the epsilon, the tags, BOS."""
    bb, reference = errata.load(folder, dtype="float64"), Reference(parts)
    ours = bb.logits(bb.encode([Prompt.of(QUESTION, shown[1])]))[0]
    other_epsilon = Reference(parts, eps=1e-6).logits(ASKED.format(QUESTION), shown[1:2])
    untagged = reference.logits(f"###Human: <ImageHere> {QUESTION}###Assistant: ", shown[1:2])
    x = reference.embedded(ASKED.format(QUESTION), shown[1:2])[1:]
    without_bos = reference.llama(inputs_embeds=x[None]).logits[0, -1:]
    for other in (other_epsilon, untagged, without_bos):
        assert _gap(ours, other) > 1e-3


def test_prompts_without_a_picture_and_with_two(parts, folder, shown) -> None:
    bb, reference = errata.load(folder, dtype="float64"), Reference(parts)
    alone = bb.logits(bb.encode([Prompt.of(QUESTION)]))[0]
    assert _gap(alone, reference.logits(f"###Human: {QUESTION}###Assistant: ", [])) < 1e-5
    both = Prompt((Image.of(shown[0]), Image.of(shown[2]), QUESTION))
    text = "###Human: <Img><ImageHere></Img> <Img><ImageHere></Img> " + QUESTION + "###Assistant: "
    wanted = reference.logits(text, [shown[0], shown[2]])
    assert _gap(bb.logits(bb.encode([both]))[0], wanted) < 1e-5


@pytest.mark.parametrize(
    ("style", "with_picture", "text_only"),
    [
        ("raw", "<ImageHere>\n{}", "{}"),
        (
            "easyedit",
            "###Human: <Img><ImageHere></Img> Question: {} Short answer:",
            "Question: {} Short answer:",
        ),
    ],
)
def test_styles_of_the_papers(parts, folder, shown, style, with_picture, text_only) -> None:
    bb = errata.load(folder, style=style, dtype="float64")
    reference = Reference(parts)
    for template, pics in ((with_picture, shown[:1]), (text_only, [])):
        prompt = Prompt.of(QUESTION, *pics)
        wanted = reference.logits(template.format(QUESTION), pics)
        assert _gap(bb.logits(bb.encode([prompt]))[0], wanted) < 1e-5


def test_the_image_token_is_never_the_best_answer(folder) -> None:
    bb = errata.load(folder)
    head = bb.model.get_output_embeddings().weight
    torch.testing.assert_close(head[-1], head[:-1].mean(0))
    x = torch.randn(2000, head.shape[1], generator=torch.Generator().manual_seed(0)) * 3
    assert int((x @ head.T).argmax(-1).max()) < bb.image_id == len(head) - 1


def test_the_names_and_shapes_of_the_real_model_match_completely() -> None:
    """On the meta device: no memory. The text model is the library's own."""
    from transformers import LlamaConfig

    shapes = {f"visual_encoder.{k}": v for k, v in published.tower_shapes(REAL).items()}
    # EVA has one block more than BLIP-2 and MiniGPT-4 use
    last = {k.replace("blocks.0.", "blocks.39."): v for k, v in shapes.items() if "blocks.0." in k}
    shapes |= {**last, **published.qformer_shapes(REAL), **published.checkpoint_shapes(REAL)}
    sizes = names.sizes(shapes, vit_heads=None, qformer_heads=None)
    assert sizes.queries == 32
    assert sizes.vision == {
        "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    assert sizes.qformer["num_attention_heads"] == 12
    text = LlamaConfig(vocab_size=32001)
    config = names.configuration(sizes, text, 32000)
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        target, bias = names.renamed(name), names.QKV_BIAS.fullmatch(name)
        assert target is not None or bias, name
        if names.is_used(name, 39) and bias:
            found[names.bias_of(int(bias[1]))] = (3 * shape[0],)
        elif names.is_used(name, 39) and target:
            assert target not in found
            found[target] = shape
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert found == {k: v for k, v in wanted.items() if not k.startswith("language_model.")}


def test_wrap_load_and_save_give_one_fingerprint(folder, tmp_path) -> None:
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    loaded = errata.load(folder)
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    wrapped = errata.wrap(model, processor)
    assert type(wrapped) is type(loaded) and wrapped.style == "chat"
    assert wrapped.fingerprint() == loaded.fingerprint()
    assert model.vision_model.post_layernorm.eps == 1e-5
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert errata.load(tmp_path / "again").fingerprint() == loaded.fingerprint()
    eps = json.loads((tmp_path / "again" / "config.json").read_text())
    eps["minigpt4"]["ln_vision_eps"] = 1e-6
    (tmp_path / "again" / "config.json").write_text(json.dumps(eps))
    other = errata.load(tmp_path / "again")
    assert other.fingerprint() != loaded.fingerprint()
    eps["minigpt4"] = {}
    (tmp_path / "again" / "config.json").write_text(json.dumps(eps))
    with pytest.raises(BadBackbone, match=r"part minigpt4 of config.json has no ln_vision_eps"):
        errata.load(tmp_path / "again")


def test_an_ordinary_blip2_is_no_minigpt4() -> None:
    from errata.backbones import _families
    from errata.testing.tiny_models import blip2, minigpt4

    chosen = []
    for model in (blip2().model, minigpt4().model):
        config = model.config.to_dict()
        chosen.append(next(n for n, c in _families().items() if c.accepts(config)))
    assert chosen == ["hf_vlm", "minigpt4"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_one_model_in_every_dtype(parts, shown, tmp_path, dtype) -> None:
    """The Q-Former stays in float32 beside float16; loading wider loses and adds nothing."""
    done = convert(parts, tmp_path / "half", dtype=dtype, **HEADS)  # type: ignore[arg-type]
    assert done.dtype == dtype
    half, wide = (errata.load(tmp_path / "half", dtype=d) for d in ("auto", "float32"))
    assert half.dtype == getattr(torch, dtype) and wide.dtype == torch.float32
    kept = torch.float32 if dtype == "float16" else torch.bfloat16
    assert half.model.qformer.layernorm.weight.dtype == kept
    assert half.fingerprint() == wide.fingerprint()
    wanted = Reference(parts).logits(ASKED.format(QUESTION), shown[:1])
    ours = wide.logits(wide.encode([Prompt.of(QUESTION, shown[0])]))[0]
    assert _gap(ours, wanted) < 0.5


# -- the folder of the text model ------------------------------------------------------------------


def test_bin_files_tied_weights_and_old_buffers(parts, folder, shown, tmp_path) -> None:
    """As Vicuna v0 is stored: `.bin` shards with the buffers of old versions of transformers."""
    from safetensors.torch import load_file

    vicuna = tmp_path / "vicuna"
    shutil.copytree(parts.vicuna, vicuna)
    tensors: dict[str, torch.Tensor] = {}
    for file in vicuna.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (vicuna / "model.safetensors.index.json").unlink()
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
    keys = sorted(tensors)
    where = {}
    for n, part in enumerate((keys[::2], keys[1::2])):
        torch.save({k: tensors[k] for k in part}, vicuna / f"pytorch_model-{n}.bin")
        where |= dict.fromkeys(part, f"pytorch_model-{n}.bin")
    index = {"metadata": {}, "weight_map": where}
    (vicuna / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(replace(parts, vicuna=vicuna), tmp_path / "out", **HEADS)  # type: ignore[arg-type]
    assert _same(errata.load(tmp_path / "out"), errata.load(folder))
    tied = tmp_path / "tied"
    shutil.copytree(vicuna, tied)
    for n in (0, 1):
        held = torch.load(tied / f"pytorch_model-{n}.bin", weights_only=True)
        held.pop("lm_head.weight", None)
        torch.save(held, tied / f"pytorch_model-{n}.bin")
    convert(replace(parts, vicuna=tied), tmp_path / "tied-out", **HEADS)  # type: ignore[arg-type]
    model = errata.load(tmp_path / "tied-out").model
    head, embed = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(head, embed)


def _same(a: Any, b: Any) -> bool:
    one, other = a.model.state_dict(), b.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_wider_text_model_and_one_with_room_for_the_token(tmp_path) -> None:
    """Sizes are read from the files; rows that are there already are used."""
    parts = published.save_published(tmp_path, replace(SMALL, text=48))
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(parts.vicuna)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 7)
    model.save_pretrained(parts.vicuna)
    convert(parts, tmp_path / "out", **HEADS)  # type: ignore[arg-type]
    bb = errata.load(tmp_path / "out")
    assert bb.width == 48 and bb.image_id == size
    assert bb.model.get_input_embeddings().num_embeddings == size + 7
    bb.logits(bb.encode([Prompt.of(QUESTION, pictures(tmp_path / "shown")[0])]))


# -- what is refused -------------------------------------------------------------------------------


def _changed(path: Path, to: Path, change: Any, inside: str = "model") -> Path:
    value = torch.load(path, weights_only=True)
    change(value[inside] if inside else value)
    torch.save(value, to)
    return to


def _renamed(old: str, new: str) -> Any:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def _set(key: str, value: Any) -> Any:
    return lambda tensors: tensors.update({key: value})


FAULTS = [
    (
        "vit",
        _renamed("blocks.1.mlp.fc1.bias", "blocks.1.mlp.fc3.bias"),
        "blocks.1.mlp.fc3.bias, wh",
    ),
    ("vit", lambda t: t.pop("blocks.1.mlp.fc1.bias"), "no file holds .*layers.1.mlp.fc1.bias"),
    ("vit", lambda t: t.pop("blocks.2.attn.v_bias"), "blocks.2.attn.q_bias, but no v_bias"),
    ("vit", lambda t: t.pop("blocks.2.attn.q_bias"), "no file holds .*2.self_attn.qkv.bias"),
    ("vit", _set("blocks.0.norm1.bias", torch.ones(23)), r"norm1.bias has the shape \[23\]"),
    ("vit", _set("pos_embed", torch.ones(1, 18, 24)), "17 patches, which form no square"),
    ("vit", _set("cls_token", torch.ones(24)), r"cls_token has the shape \[24\], not 3 axes"),
    ("vit", _set("blocks.0.norm1.bias", torch.ones(24).long()), "holds torch.int64, not floats"),
    (
        "vit",
        _set("blocks.0.norm1.bias", torch.full((24,), torch.nan)),
        "NaN .* in blocks.0.norm1.b",
    ),
    ("vit", _set("blocks.0.norm1.bias", "text"), "blocks.0.norm1.bias is no tensor, but str"),
    ("qformer", _set("Qformer.bert.pooler.dense.bias", torch.ones(2)), "Qformer.bert.pooler.d"),
    ("qformer", lambda t: t.pop("query_tokens"), "no file holds query_tokens"),
    ("checkpoint", _set("llama_proj.weight", torch.ones(8, 16)), r"weight has the shape \[8, 16\]"),
    ("checkpoint", _set("llama_model.x.lora_A.weight", torch.ones(2, 2)), "llama_model.x.lora_A"),
]


@pytest.mark.parametrize(("option", "change", "line"), FAULTS)
def test_a_tensor_that_is_wrong_is_named(parts, tmp_path, option, change, line) -> None:
    inside = "" if option == "vit" else "model"
    file = _changed(getattr(parts, option), tmp_path / "f.pth", change, inside)
    out = tmp_path / "out"
    with pytest.raises(BadBackbone, match=line) as e:
        convert(replace(parts, **{option: file}), out, **HEADS)  # type: ignore[arg-type]
    assert "\n" not in str(e.value)
    assert sorted(os.listdir(tmp_path)) == ["f.pth"], "nothing half-written is left"


def test_a_number_that_the_dtype_cannot_hold_is_named(parts, tmp_path) -> None:
    change = _set("llama_proj.bias", torch.full((32,), 1e6))
    file = _changed(parts.checkpoint, tmp_path / "f.pth", change)
    changed = replace(parts, checkpoint=file)
    with pytest.raises(BadBackbone, match=r"llama_proj.bias has numbers that torch.float16 cannot"):
        convert(changed, tmp_path / "out", dtype="float16", **HEADS)  # type: ignore[arg-type]
    convert(changed, tmp_path / "out", **HEADS)  # type: ignore[arg-type]


def test_the_wrong_file_is_said_in_words(parts, tmp_path) -> None:
    wrong = [
        ({"vit": parts.qformer}, "is the Q-Former .*: give it as --qformer. As --vit errata needs"),
        ({"qformer": parts.checkpoint}, "is the checkpoint of MiniGPT-4.*give it as --checkpoint"),
        ({"checkpoint": parts.vit}, "is the vision tower .*: give it as --vit"),
        ({"checkpoint": parts.vicuna}, "is a folder. Give the name of a file"),
        ({"vit": tmp_path / "none.pth"}, "none.pth does not exist"),
        ({"vicuna": parts.vit}, "is no folder. Give --vicuna"),
        ({"vicuna": tmp_path}, "has no config.json"),
    ]
    for change, line in wrong:
        with pytest.raises(BadBackbone, match=line) as e:
            convert(replace(parts, **change), tmp_path / "out", **HEADS)  # type: ignore[arg-type]
        assert "\n" not in str(e.value)


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_damaged_files_and_code_in_them_are_refused(parts, tmp_path) -> None:
    evil, cut, plain = tmp_path / "evil.pth", tmp_path / "cut.pth", tmp_path / "plain.pth"
    torch.save({"model": Evil(tmp_path / "ran")}, evil)
    cut.write_bytes(parts.vit.read_bytes()[:-5000])
    torch.save([torch.ones(2)], plain)
    for file, line in ((evil, "holds objects"), (cut, "damaged"), (plain, "holds no named tens")):
        with pytest.raises(BadBackbone, match=line) as e:
            convert(replace(parts, vit=file), tmp_path / "out", **HEADS)  # type: ignore[arg-type]
        assert "\n" not in str(e.value)
    assert not (tmp_path / "ran").exists()


def test_other_text_models_heads_and_dtypes_are_refused(parts, tmp_path) -> None:
    other = tmp_path / "opt"
    shutil.copytree(parts.vicuna, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    with pytest.raises(BadBackbone, match="holds a model of type 'opt', not a Llama"):
        convert(replace(parts, vicuna=other), tmp_path / "out", **HEADS)  # type: ignore[arg-type]
    with pytest.raises(BadSpec, match=r"width of 24 is none of the published .* --vit-heads"):
        convert(parts, tmp_path / "out")
    with pytest.raises(BadSpec, match="--qformer-heads 3 does not divide the width 16"):
        convert(parts, tmp_path / "out", vit_heads=3, qformer_heads=3)
    with pytest.raises(BadSpec, match="unknown dtype 'int8'"):
        convert(parts, tmp_path / "out", dtype="int8", **HEADS)  # type: ignore[arg-type]


# -- the folder that is written --------------------------------------------------------------------


def test_a_folder_is_replaced_only_with_force_and_only_a_converted_one(
    parts, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(parts, out, **HEADS)  # type: ignore[arg-type]
    before = _contents(out)
    with pytest.raises(BadOutput, match=r"holds a converted model. Give --force"):
        convert(parts, out, **HEADS)  # type: ignore[arg-type]
    (out / "mine.txt").write_text("x")
    with pytest.raises(BadOutput, match=r"holds mine.txt, which is no part of a converted model"):
        convert(parts, out, force=True, **HEADS)  # type: ignore[arg-type]
    (out / "mine.txt").unlink()
    (out / "model-00001-of-00099.safetensors").write_text("of a conversion in smaller files")
    convert(parts, out, force=True, **HEADS)  # type: ignore[arg-type]
    assert _contents(out) == before
    for folder, line in (
        (parts.vicuna, "which is converted"),
        (tmp_path, "holds out, which is no part"),
    ):
        with pytest.raises(BadOutput, match=line):
            convert(parts, folder, force=True, **HEADS)  # type: ignore[arg-type]

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        convert(parts, out, force=True, **HEADS)  # type: ignore[arg-type]
    assert _contents(out) == before and os.listdir(tmp_path) == ["out"]


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_full_disk_is_said_before_anything_is_written(parts, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(DiskFull, match=r"needs 0.0 GiB, and .* has 0.0 GiB free"):
        convert(parts, tmp_path / "out", **HEADS)  # type: ignore[arg-type]
    assert not os.listdir(tmp_path)


def test_what_a_kill_left_is_put_right(tmp_path) -> None:
    """Between the two renames, and with an unfinished folder of a process that is no more."""
    target = tmp_path / "model"
    (tmp_path / ".model.former").mkdir()
    (tmp_path / ".model.former" / "old").write_text("old")
    mine = files._temporary(target)
    left = tmp_path / f"{mine.rsplit('-', 2)[0]}-999999999-abc"
    left.mkdir()
    with pytest.raises(RuntimeError), files.new_folder(target):
        assert (target / "old").read_text() == "old"
        raise RuntimeError
    assert os.listdir(tmp_path) == ["model"]
    with files.new_folder(target) as stage:
        (stage / "new").write_text("new")
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["model"]
