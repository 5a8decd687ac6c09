"""Patches as LoRA adapters: peft and transformers answer as the patch does, or one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import errata
from errata.artefacts.changes import WeightChange
from errata.artefacts.linear import _linear
from errata.artefacts.lora import factors
from errata.artefacts.peft_export import (
    ExportedAdapter,
    ExportedModule,
    _config,
    _ranks,
    _tensors,
)
from errata.core.errors import BadOutput, BadPatch, BadSpec, FingerprintMismatch, UserError
from errata.core.patch import Header
from errata.patches.context import Context, ContextSettings, Fact
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.patches.stack import Stack
from errata.testing import zoo
from tests import tiny
from tests.leaving import apart, asked, delta, with_load_adapter, with_peft


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("rank", [3, None], ids=["low-rank", "dense"])
def test_peft_and_transformers_answer_as_the_patch(
    family: str, rank: int | None, tmp_path: Path
) -> None:
    bb = tiny.shared(family)
    first = delta(bb, ["text.1.mlp.down", "text.2.attn.v"], rank=rank, seed=1)
    second = delta(bb, ["text.1.mlp.down"], rank=2, seed=2)
    out = tmp_path / "adapter"
    made = errata.export_peft([first, second], out, backbone=bb)
    assert made.loss < 1e-6
    assert len(made.modules) == 2
    base, wanted = asked(bb), asked(bb, first, second)
    assert apart(base, wanted) > 0.1
    for load in (with_peft, with_load_adapter):
        model, named = load(bb, out)
        assert apart(asked(named), wanted) <= 1e-5, load.__name__
        if load is with_peft:
            with model.disable_adapter():
                assert torch.equal(asked(named), base)
        else:
            model.disable_adapters()
            assert torch.equal(asked(named), base)


def test_low_rank_changes_are_copied_and_ranks_are_written_where_they_differ(
    backbone: tiny.HfVlm, tmp_path: Path
) -> None:
    patch = Stack(
        [delta(backbone, ["text.1.mlp.down"], rank=2), delta(backbone, ["text.3.attn.q"], rank=5)]
    )
    out = tmp_path / "adapter"
    made = errata.export_peft(patch, out, backbone=backbone)
    assert made.loss == 0.0 and made.rank == 5
    config = config_of(out)
    down = "model.language_model.layers.1.mlp.down_proj"
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    assert config["rank_pattern"] == config["alpha_pattern"] == {down: 2}
    assert config["base_model_name_or_path"] == "tiny-llava"
    assert not config["fan_in_fan_out"]
    tensors = load_file(out / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.{m}.lora_{half}.weight"
        for m in config["target_modules"]
        for half in "AB"
    }
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    card = (out / "README.md").read_text()
    assert f"| `{down}` | 2 | 0.00e+00 |" in card
    assert "'Which colour 0?' -> 'red'" in card


def test_the_loss_of_a_rank_is_what_is_lost(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    """The measured loss is that of the written tensors, and the best that a rank allows."""
    patch = delta(backbone, ["text.1.mlp.down", "text.2.mlp.up"], rank=None)
    made = errata.export_peft(patch, tmp_path / "a", backbone=backbone, rank=4)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    lost = total = 0.0
    for module in made.modules:
        exact = patch.part(module.site)["dense"].double()
        key = f"base_model.model.{module.path}"
        written = (
            tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()
        )
        error, size = float((written - exact).norm()), float(exact.norm())
        tail = torch.linalg.svdvals(exact)[4:].square().sum().sqrt()
        assert module.loss == pytest.approx(error / size, rel=1e-6)
        assert error == pytest.approx(float(tail), rel=1e-4)
        lost, total = lost + error**2, total + size**2
    assert made.loss == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert 0.3 < made.loss < 1
    assert any("can undo an edit" in r for r in made.remarks)


def test_a_smaller_rank_of_a_low_rank_change_is_its_best(backbone: tiny.HfVlm) -> None:
    change = WeightChange.of(delta(backbone, ["text.1.mlp.down"], rank=6).part("text.1.mlp.down"))
    small = factors(change, 2)
    exact = change.rows(0, change.shape[0])
    tail = torch.linalg.svdvals(exact)[2:].square().sum().sqrt()
    assert small.rank == 2
    assert small.error == pytest.approx(float(tail), rel=1e-5)
    assert small.error == pytest.approx(float((small.b @ small.a - exact).norm()), rel=1e-5)


def test_a_dense_change_of_low_rank_needs_no_full_adapter() -> None:
    rng = torch.Generator().manual_seed(0)
    dense = torch.randn(40, 3, generator=rng) @ torch.randn(3, 24, generator=rng)
    made = factors(WeightChange.of({"dense": dense}))
    assert made.rank == 3
    assert made.loss < 1e-6


def test_a_change_of_zero_is_an_adapter_of_zeros() -> None:
    made = factors(WeightChange.of({"dense": torch.zeros(4, 6)}))
    assert (made.rank, made.loss) == (1, 0.0)
    assert not made.a.any() and not made.b.any()


@pytest.mark.parametrize(("rank", "written"), [(3, 8), (9, 16), (20, 32)])
def test_vllm_gets_one_rank_for_all_modules(
    backbone: tiny.HfVlm, tmp_path: Path, rank: int, written: int
) -> None:
    patch = Stack(
        [
            delta(backbone, ["text.1.mlp.down"], rank=rank),
            delta(backbone, ["text.3.attn.q"], rank=2),
        ]
    )
    made = errata.export_peft(patch, tmp_path / "a", backbone=backbone, vllm=True)
    config = config_of(tmp_path / "a")
    assert config["r"] == config["lora_alpha"] == made.rank == written
    assert "rank_pattern" not in config and "alpha_pattern" not in config
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {t.shape[0 if "lora_A" in k else 1] for k, t in tensors.items()} == {written}
    said = [r for r in made.remarks if "--max-lora-rank" in r]
    assert said == ([f"vLLM needs the option --max-lora-rank {written}."] if written > 16 else [])
    _, named = with_peft(backbone, tmp_path / "a")
    assert apart(asked(named), asked(backbone, patch)) <= 1e-5


def test_vllm_takes_no_rank_above_512(tmp_path: Path) -> None:
    change = WeightChange.of({"A": torch.randn(600, 700), "B": torch.randn(800, 600)})
    with pytest.raises(BadSpec, match=r"has rank 600, and vLLM takes at most 512. Give a --rank"):
        _ranks({"s": factors(change)}, True)


def test_other_dtypes_are_measured_too(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    patch = delta(backbone, ["text.1.mlp.down"])
    made = errata.export_peft(patch, tmp_path / "a", backbone=backbone, dtype="bfloat16")
    assert 1e-4 < made.loss < 1e-2
    assert load_file(tmp_path / "a" / "adapter_model.safetensors").popitem()[1].dtype == (
        torch.bfloat16
    )
    huge = Delta({"text.1.mlp.down": {"dense": torch.full((32, 64), 1e12)}}).with_header(
        patch.header, []
    )
    with pytest.raises(BadPatch, match=r"too large for torch.float16"):
        errata.export_peft(huge, tmp_path / "b", backbone=backbone, dtype="float16")
    assert not (tmp_path / "b").exists()


class TinyConv(nn.Module):
    """One block with GPT-2's Conv1D, whose weight is stored as [in, out]."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.c_proj = Conv1D(6, 10)
        self.config = type("Config", (), {"model_type": "custom", "to_dict": dict, "get": dict.get})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_proj(x)
        return out


def test_conv1d_is_a_linear_module_stored_the_other_way_round(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    model = TinyConv()
    place = _linear("s", model.c_proj, ("c_proj",), "text", {})
    assert (place.into, place.out, place.transposed, place.has_bias) == (10, 6, True, True)
    change = WeightChange.of({"A": torch.randn(2, 10), "B": torch.randn(6, 2)})
    made = {"s": factors(change)}
    adapter = ExportedAdapter(tmp_path, "x", 2, 0.0, (ExportedModule("s", "c_proj", 2, 0.0),), ())
    config = _config(adapter, {"s": place}, Header(), False)
    assert config["fan_in_fan_out"]
    x = torch.randn(3, 10)
    wanted = model(x) + x @ change.rows(0, 6).float().T
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=["c_proj"],
                                            fan_in_fan_out=config["fan_in_fan_out"]))  # fmt: skip
    (tmp_path / "t.safetensors").write_bytes(_tensors(made, {"s": place}))
    set_peft_model_state_dict(peft, load_file(tmp_path / "t.safetensors"))
    assert apart(peft(x), wanted) < 1e-5
    assert apart(peft.merge_and_unload()(x), wanted) < 1e-5


def neurons(backbone: tiny.HfVlm) -> Neurons:
    part = {"key": torch.ones(32, 1), "key_bias": torch.ones(1), "value": torch.ones(1, 32)}
    head = Header("hand", backbone="tiny-llava", fingerprint=backbone.fingerprint())
    return Neurons({"text.1.mlp": part}).with_header(head, [])


def context(backbone: tiny.HfVlm) -> Context:
    fact = Fact("Which?", "red", ("New Fact: a b\n",))
    head = Header("hand", backbone="tiny-llava", fingerprint=backbone.fingerprint())
    return Context([fact], ContextSettings(), torch.eye(1, 8)).with_header(head, [])


REFUSED = {
    "neurons": (lambda b: neurons(b), BadPatch, "has the shape 'neurons'"),
    "context": (lambda b: context(b), BadPatch, "has the shape 'context'"),
    "one of a stack": (
        lambda b: Stack([delta(b, ["text.1.mlp.down"]), neurons(b)]),
        BadPatch,
        "has the shape 'neurons' .* cannot become a LoRA adapter",
    ),
    "rows": (
        lambda b: Delta({"text.1.mlp.down": {"dense": torch.ones(2, 32, 64)}}, rows=2),
        BadPatch,
        "a row for every question",
    ),
    "bias": (
        lambda b: delta(b, ["text.1.mlp.down"], bias=True),
        BadPatch,
        "changes a bias .* errata patch merge",
    ),
    "empty": (lambda b: Stack([]), BadPatch, "the patch is empty"),
    "no site": (
        lambda b: Delta({"text.99.mlp.down": {"dense": torch.ones(32, 64)}}),
        BadPatch,
        "acts at text.99.mlp.down, which is not one linear module of tiny-llava",
    ),
    "no linear module": (
        lambda b: Delta({"text.1.mlp": {"dense": torch.ones(32, 32)}}),
        BadPatch,
        "is not one linear module of tiny-llava. Those are: text.1.mlp.down",
    ),
    "other shape": (
        lambda b: Delta({"text.1.mlp.down": {"dense": torch.ones(32, 32)}}),
        BadPatch,
        "changes a weight of 32 x 32 .* which in tiny-llava is 32 x 64",
    ),
    "not finite": (
        lambda b: Delta({"text.1.mlp.down": {"dense": torch.full((32, 64), torch.nan)}}),
        BadPatch,
        "NaN or infinite",
    ),
    "other model": (
        lambda b: delta(b, ["text.1.mlp.down"]).with_header(
            Header("hand", backbone="other", fingerprint="0" * 64), []
        ),
        FingerprintMismatch,
        "was made for other",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_low_rank_change_is_refused_in_one_line(
    backbone: tiny.HfVlm, tmp_path: Path, case: str
) -> None:
    make, error, words = REFUSED[case]
    with pytest.raises(error, match=words) as caught:
        errata.export_peft(make(backbone), tmp_path / "a", backbone=backbone)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_tied_head_is_refused_and_an_untied_one_exported(tmp_path: Path) -> None:
    bb = tiny.llava()
    patch = delta(bb, ["head"])
    errata.export_peft(patch, tmp_path / "a", backbone=bb)
    _, named = with_peft(bb, tmp_path / "a")
    assert apart(asked(named), asked(bb, patch)) <= 1e-5
    bb.head.weight = bb.layout.embed.weight
    tied = delta(bb, ["head"])
    with pytest.raises(BadPatch, match=r"acts at head, whose weight is also .*embed_tokens.weight"):
        errata.export_peft(tied, tmp_path / "b", backbone=bb)


def test_settings_and_folders_are_checked(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    patch = delta(backbone, ["text.1.mlp.down"])

    def refused(error: type[UserError], words: str, folder: Path, **settings: Any) -> None:
        with pytest.raises(error, match=words):
            errata.export_peft(patch, folder, backbone=backbone, **settings)

    refused(BadSpec, "a rank of 0", tmp_path / "a", rank=0)
    refused(BadSpec, "unknown dtype 'int8'", tmp_path / "a", dtype="int8")
    errata.save_patch(patch, tmp_path / "p")
    refused(BadOutput, "holds a patch of errata", tmp_path / "p")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused(BadOutput, "not empty and holds no adapter", tmp_path / "other")
    with pytest.raises(BadPatch, match="is given as"):
        errata.export_peft("patch", tmp_path / "a", backbone=backbone)  # type: ignore[arg-type]
    errata.export_peft(patch, tmp_path / "a", backbone=backbone)
    errata.export_peft(patch, tmp_path / "a", backbone=backbone, rank=1)  # replaced
    assert config_of(tmp_path / "a")["r"] == 1


def test_a_model_with_an_adapter_of_its_own_is_refused(
    backbone: tiny.HfVlm, tmp_path: Path
) -> None:
    patch = delta(backbone, ["text.1.mlp.down"])
    errata.export_peft(patch, tmp_path / "a", backbone=backbone)
    _, named = with_peft(backbone, tmp_path / "a")
    with pytest.raises(UserError, match="has an adapter of its own"):
        errata.export_peft(
            patch.with_header(Header("hand", backbone="peft"), []), tmp_path / "b", backbone=named
        )


def test_another_model_by_name_is_refused(tmp_path: Path) -> None:
    """Its shapes may fit; its weights say that it is another one."""
    bb = zoo.loaded("llama")
    patch = delta(bb, ["text.1.mlp.down"], rank=2)
    with pytest.raises(FingerprintMismatch):
        errata.export_peft(patch, tmp_path / "a", backbone=str(zoo.folder_of("mistral")))
    assert not (tmp_path / "a").exists()
