"""Somebody's LoRA as a patch: the answers of peft's own model, or one clear line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import errata
from errata.artefacts.peft_import import import_peft
from errata.cli import main
from errata.core.errors import BadPatch
from tests import tiny
from tests.leaving import apart, asked, delta, with_peft

LAYER = "model.language_model.layers.1"


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def adapter(backbone: tiny.HfVlm, folder: Path, **settings: Any) -> Path:
    """What peft itself saves for a LoRA whose matrices are random."""
    from peft import LoraConfig, get_peft_model

    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(copy.deepcopy(backbone.model), LoraConfig(**given))
    torch.manual_seed(3)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.2)
    model.peft_config["default"].base_model_name_or_path = backbone.name
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def changed(folder: Path, **settings: Any) -> None:
    """Other values in the adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"down_proj": 2, r"layers\.[23]\.self_attn\.q_proj": 7},
        "alpha_pattern": {"layers.0.mlp.down_proj": 11, "^model.vision_tower.*q_proj": 3},
    },
    "regular expression": {"target_modules": r".*language_model.*\.(v_proj|up_proj)"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "fan_in_fan_out": {"fan_in_fan_out": False, "lora_dropout": 0.3},
    "all linear": {"target_modules": "all-linear", "exclude_modules": ["linear_2"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_patch_answers_as_peft(backbone: tiny.HfVlm, tmp_path: Path, variant: str) -> None:
    folder = adapter(backbone, tmp_path / "a", **VARIANTS[variant])
    patch = import_peft(folder, backbone)
    _, named = with_peft(backbone, folder)
    wanted = asked(named)
    assert apart(wanted, asked(backbone)) > 0.05
    assert apart(asked(backbone, patch), wanted) <= 1e-5
    assert patch.edits == ()


def other_keys(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({k.replace(old, new): v for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".weight", ".default.weight"),
        ("base_model.model.", ""),
        ("base_model.model.model.language_model.", "base_model.model.language_model.model."),
    ],
    ids=["adapter name", "no prefix", "transformers 4"],
)
def test_keys_may_be_written_in_other_ways(
    backbone: tiny.HfVlm, tmp_path: Path, old: str, new: str
) -> None:
    folder = adapter(backbone, tmp_path / "a", target_modules=r".*language_model.*q_proj")
    wanted = import_peft(folder, backbone)
    other_keys(folder, old, new)
    patch = import_peft(folder, backbone)
    assert patch.sites == wanted.sites
    assert apart(asked(backbone, patch), asked(backbone, wanted)) == 0.0


def test_a_bin_file_is_read_without_running_it(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "a")
    wanted = import_peft(folder, backbone)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    assert apart(asked(backbone, import_peft(folder, backbone)), asked(backbone, wanted)) == 0.0
    torch.save({"x": Path("hostile")}, folder / "adapter_model.bin")
    with pytest.raises(BadPatch, match="cannot be read as a file of tensors alone"):
        import_peft(folder, backbone)


def test_an_export_comes_back_as_the_same_change(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    patch = delta(backbone, ["text.1.mlp.down", "text.2.attn.o"], rank=5)
    errata.export_peft(patch, tmp_path / "a", backbone=backbone)
    again = import_peft(tmp_path / "a", backbone)
    for site in patch.sites:
        assert torch.equal(again.part(site)["A"], patch.part(site)["A"])
        assert torch.equal(again.part(site)["B"], patch.part(site)["B"])


def test_a_patch_without_edits_is_an_ordinary_one(
    backbone: tiny.HfVlm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved, loaded, shown, verified, stacked, squashed; two adapters have two origins."""
    first = import_peft(adapter(backbone, tmp_path / "a"), backbone)
    second = import_peft(adapter(backbone, tmp_path / "b", r=2), backbone)
    assert first.header.editor == "peft"
    assert first.header.notes["source"] == "a" and first.header.notes["base"] == backbone.name
    assert first.origins and not first.origins & second.origins
    errata.save_patch(first, tmp_path / "p")
    loaded = errata.load_patch(tmp_path / "p", backbone)
    assert loaded.header == first.header
    own = delta(backbone, ["text.1.mlp.down"])
    wanted = asked(backbone, loaded, second, own)
    assert apart(wanted, asked(backbone, own)) > 0.05
    joint = errata.squash_patches([loaded, second, own])
    assert apart(asked(backbone, joint), wanted) <= 1e-5
    assert [e.target for e in joint.edits] == ["red"]
    assert errata.verify(backbone, [loaded]) == []
    for command in ("show", "verify"):
        with pytest.raises(SystemExit) as end:
            main(["patch", command, str(tmp_path / "p")])
        assert end.value.code == 0
    assert "edits: 0" in capsys.readouterr().out


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "uses DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
    "biases": ({"bias": "lora_only"}, "also changes biases"),
    "other type": ({"peft_type": "IA3"}, "of type 'IA3', not LORA"),
    "no type": ({"peft_type": None}, "of type 'None'"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "started by 'pissa_niter_4'"),
    "bias of B": ({"lora_bias": True}, "uses lora_bias"),
    "tokens": ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
    "activated": ({"alora_invocation_tokens": [5, 6]}, "uses alora_invocation_tokens"),
    "a setting of the future": ({"use_tomorrow": {"x": 1}}, "uses use_tomorrow"),
    "other model": ({"base_model_name_or_path": "you/other"}, "of you/other, not of tiny-llava"),
    "other rank": ({"r": 3}, "has rank 4, and adapter_config.json says 3"),
    "no number": ({"lora_alpha": "six"}, "six stands where a number must"),
    "bad pattern": ({"rank_pattern": {"(": 2}}, r"the pattern '\('"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_lora_is_refused_in_one_line(
    backbone: tiny.HfVlm, tmp_path: Path, case: str
) -> None:
    settings, words = REFUSED[case]
    folder = adapter(backbone, tmp_path / "a")
    changed(folder, **settings)
    with pytest.raises(BadPatch, match=words) as caught:
        import_peft(folder, backbone)
    assert "\n" not in str(caught.value)


def test_real_dora_and_other_tensors_are_refused(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "dora", use_dora=True)
    changed(folder, use_dora=False)  # the tensors give it away
    with pytest.raises(BadPatch, match=r"lora_magnitude_vector.*no part of a LoRA of a linear"):
        import_peft(folder, backbone)
    folder = adapter(backbone, tmp_path / "embed", target_modules=["embed_tokens"])
    with pytest.raises(BadPatch, match=r"lora_embedding_[AB], which is no part"):
        import_peft(folder, backbone)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("layers.1.mlp", "layers.9.mlp", r"layers.9.mlp.down_proj, which tiny-llava does not have"),
        (
            f"{LAYER}.mlp.down_proj",
            "model.vision_tower.encoder.layers.0.layer_norm1",
            "which is no site of tiny-llava",
        ),
        (f"{LAYER}.mlp.down_proj.lora_A", "x.lora_C", "x.lora_C.weight, which is no part"),
        (
            f"{LAYER}.mlp.down_proj",
            f"{LAYER}.mlp.up_proj",
            "do not fit tiny-llava, where it has 32",
        ),
    ],
)
def test_modules_that_are_no_site_are_named(
    backbone: tiny.HfVlm, tmp_path: Path, old: str, new: str, words: str
) -> None:
    folder = adapter(backbone, tmp_path / "a", target_modules=["down_proj"])
    other_keys(folder, old, new)
    with pytest.raises(BadPatch, match=words):
        import_peft(folder, backbone)


def test_damaged_folders_are_refused(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "a")

    def refused(words: str, path: Path = folder) -> None:
        with pytest.raises(BadPatch, match=words):
            import_peft(path, backbone)

    refused("is no folder", tmp_path / "none")
    refused(r"has no adapter_config.json. It holds adapters \(a\)", tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(k for k in tensors if "lora_B" in k)
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    refused("lacks a half of")
    save_file({**tensors, name: tensors[name] * torch.nan}, file)
    refused("NaN or infinite")
    save_file({**tensors, name.replace(".weight", ".b.weight"): tensors[name].clone()}, file)
    refused("holds several adapters of")
    save_file({}, file)
    refused("holds no tensors")
    file.write_bytes(b"\0" * 40)
    refused("is damaged")
    file.unlink()
    refused("has no adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    refused("is no object")


def test_any_base_takes_an_adapter_of_a_copy(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "a")
    wanted = asked(backbone, import_peft(folder, backbone))
    changed(folder, base_model_name_or_path="you/copy")
    patch = import_peft(folder, backbone, any_base=True)
    assert torch.equal(asked(backbone, patch), wanted)
    assert patch.header.notes["base"] == "you/copy"
