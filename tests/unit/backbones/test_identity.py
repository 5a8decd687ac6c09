"""The fingerprint: the same for the same model however it is kept, another for another one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from errata.backbones import _identity, _weights, load
from errata.core.errors import FingerprintMismatch
from errata.core.patch import Header
from errata.core.types import Prompt
from errata.patches.stack import Stack
from errata.testing import tiny_models as tiny

ALL = {**tiny.FAMILIES, **tiny.WINDOWED, **tiny.DRAWING}


def parts(family: str) -> tuple[Any, Any]:
    """Model and processor of a family, for one test alone."""
    bb = ALL[family]()
    return bb.model, getattr(bb, "processor", bb.tokenizer)


def around(model: Any, processor: Any, **options: Any) -> Any:
    kind = tiny.MicroUmmBackbone if hasattr(model, "generator") else tiny.HfVlm
    return kind(model, processor, name="copy", **options)


@pytest.fixture(params=ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_parts_that_stay_in_float32_hide_no_rounding(tmp_path: Path) -> None:
    """BLIP-2 in float16 keeps its Q-Former in float32; it is the model of its wider files still."""
    model, processor = parts("blip2")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    full, half = (load(tmp_path, dtype=d) for d in ("float32", "float16"))
    first = next(iter(half.model.parameters()))
    assert (first.dtype, half.dtype) == (torch.float32, torch.float16)
    assert full.fingerprint() == half.fingerprint()


def test_a_copy_on_disk_is_the_same_model(family: str, tmp_path: Path) -> None:
    """Saved whole, in shards, and in a wider dtype that holds the same values."""
    model, processor = parts(family)
    want = around(model, processor).fingerprint()
    kind: Any = type(model)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for folder in ("whole", "shards"):
        again = kind.from_pretrained(tmp_path / folder)
        assert around(again, processor, source=tmp_path / folder).fingerprint() == want
        assert around(again, processor).fingerprint() == want
    half = copy.deepcopy(model).to(torch.bfloat16)
    narrow = around(half, processor).fingerprint()
    assert narrow != want
    assert around(half.to(torch.float32), processor).fingerprint() == narrow


def test_a_model_loaded_in_another_dtype_is_that_of_its_files(tmp_path: Path) -> None:
    model, processor = tiny.llava_parts()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    want = load(str(tmp_path)).fingerprint()
    for dtype in ("bfloat16", "float16"):
        bb = load(str(tmp_path), dtype=dtype)
        assert bb.fingerprint() == want
        with torch.no_grad():
            next(bb.model.parameters()).mul_(1.5)
        assert bb.fingerprint() != want, "weights that were changed are not those of the files"


def _multiply(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() > 1).mul_(1.001)


def _one_value(model: nn.Module) -> None:
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[0] += 1e-3


def _through_data(model: nn.Module) -> None:
    list(model.parameters())[-1].data.view(-1)[0] += 1e-3


def _replaced(model: nn.Module) -> None:
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.dim() > 1)
    owner = model.get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter.detach() * 2))


def _new_data(model: nn.Module) -> None:
    parameter = next(p for p in model.parameters() if p.dim() > 1)
    parameter.data = parameter.data * 2


def _narrowed(model: nn.Module) -> None:
    model.to(torch.bfloat16)


CHANGES = (_multiply, _one_value, _through_data, _replaced, _new_data, _narrowed)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_"))
@pytest.mark.parametrize("asked", [False, True], ids=["before it was asked", "after"])
def test_weights_changed_in_memory_make_another_model(
    change: Callable[[nn.Module], None], asked: bool
) -> None:
    model, processor = parts("llava")
    want = tiny.shared("llava").fingerprint()
    bb = around(model, processor)
    patch = Stack([]).with_header(Header(backbone="llava", fingerprint=want), [])
    with bb.applied(patch) if asked else bb.unedited():
        pass
    change(model)
    with pytest.raises(FingerprintMismatch, match="changed after it was loaded"):
        bb.check_patch(patch)
    assert bb.fingerprint() != want


def test_every_family_sees_a_change(family: str) -> None:
    bb = around(*parts(family))
    before = bb.fingerprint()
    assert bb.fingerprint() == before and bb.as_loaded()
    parameter = list(bb.model.parameters())[3]
    kept = parameter.detach().clone()
    parameter.data.add_(0.5)
    assert bb.fingerprint() != before and not bb.as_loaded()
    parameter.data.copy_(kept)
    assert bb.fingerprint() == before and bb.as_loaded(), "put back, it is the same model"


def _grown(bb: Any) -> None:
    bb.tokenizer.add_tokens(["zork"])


def _template(bb: Any) -> None:
    bb.processor.chat_template = "{{ messages }}"


def _normalised(bb: Any) -> None:
    bb.processor.image_processor.image_mean = [0.1, 0.2, 0.3]


def _sized(bb: Any) -> None:
    bb.processor.image_processor.do_center_crop = False


def _configured(bb: Any) -> None:
    bb.model.config.text_config.rms_norm_eps = 0.5


def _lower(bb: Any) -> None:
    from tokenizers import normalizers

    bb.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


OTHER = (_grown, _template, _normalised, _sized, _configured, _lower)


@pytest.mark.parametrize("change", OTHER, ids=lambda c: c.__name__.strip("_"))
def test_other_texts_or_pictures_make_another_model(change: Callable[[Any], None]) -> None:
    bb = tiny.llava()
    before = bb.fingerprint()
    change(bb)
    assert bb.fingerprint() != before


def test_a_tokenizer_that_was_replaced_makes_another_model() -> None:
    bb = around(*tiny.llava_parts())
    before = bb.fingerprint()
    bb.processor.tokenizer = copy.deepcopy(bb.processor.tokenizer)
    assert bb.fingerprint() == before
    bb.processor.tokenizer.add_tokens(["a new token"])
    assert bb.fingerprint() != before


def test_what_changes_no_output_is_no_other_model() -> None:
    bb = tiny.llava()
    before = bb.fingerprint()
    bb.tokenizer.pad_token = bb.tokenizer.eos_token
    bb.tokenizer.padding_side = "left"
    bb.model.config.use_cache = False
    bb.model.config._name_or_path = "elsewhere"
    bb.model.requires_grad_(True)
    assert bb.fingerprint() == before
    bb.forget()
    assert bb.fingerprint() == before


def test_offloaded_weights_are_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import cpu_offload, disk_offload

    want = tiny.shared("llava").fingerprint()
    cpu = torch.device("cpu")
    for offload in (
        lambda m: cpu_offload(m, execution_device=cpu),
        lambda m: disk_offload(m, str(tmp_path / "off"), execution_device=cpu),
    ):
        model, processor = tiny.llava_parts()
        weights = list(model.state_dict().values())
        offload(model)
        bb = around(model, processor)
        assert bb.fingerprint() == want
        with monkeypatch.context() as patched:  # a forward makes new tensors of the same weights
            patched.setattr(_identity, "weights_digest", None)
            bb.logits(bb.encode([Prompt.of("Which?")]))
            assert bb.fingerprint() == want and bb.as_loaded()
        if not list(tmp_path.iterdir()):
            weights[-1].add_(0.5)
            assert bb.fingerprint() != want


def test_wrappers_are_seen_through() -> None:
    model, processor = tiny.llava_parts()
    want = tiny.shared("llava").fingerprint()
    compiled = around(torch.compile(model), processor)
    assert compiled.fingerprint() == want
    model.model.language_model = torch.compile(model.model.language_model)
    assert around(model, processor).fingerprint() == want


def test_an_adapter_counts_while_it_acts() -> None:
    peft = pytest.importorskip("peft")
    want = tiny.shared("llava").fingerprint()
    model, processor = tiny.llava_parts()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    wrapped = peft.get_peft_model(model, config).eval()
    bb = around(wrapped, processor)
    assert bb.fingerprint() == want, "B is zero: nothing was learnt yet"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted = bb.fingerprint()
    assert adapted != want
    with wrapped.disable_adapter():
        assert bb.fingerprint() == want
    assert bb.fingerprint() == adapted
    other = peft.get_peft_model(tiny.llava_parts()[0], config, adapter_name="other").eval()
    peft.set_peft_model_state_dict(
        other, peft.get_peft_model_state_dict(wrapped), adapter_name="other"
    )
    assert around(other, processor).fingerprint() == adapted, "an adapter's name does not count"
    merged = wrapped.merge_and_unload()
    assert around(merged, processor).fingerprint() not in (want, adapted)


EMBEDDED = {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}
TOKENS = {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [20]}}


@pytest.mark.parametrize("settings", [EMBEDDED, TOKENS], ids=["embeddings", "tokens"])
def test_adapted_embeddings_count_while_they_act(settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    want = tiny.shared("llava").fingerprint()
    model, processor = tiny.llava_parts()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    bb = around(wrapped, processor)
    assert bb.fingerprint() == want
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_embedding_A" in name or "trainable_tokens_delta" in name:
                parameter.add_(0.1)
    assert bb.fingerprint() != want
    with wrapped.disable_adapter():
        assert bb.fingerprint() == want


def test_a_learnt_magnitude_counts_beside_a_factor_of_zeros() -> None:
    peft = pytest.importorskip("peft")
    model, processor = tiny.llava_parts()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    bb = around(peft.get_peft_model(model, config).eval(), processor)
    before = bb.fingerprint()
    with torch.no_grad():
        for name, parameter in bb.model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.5)
    assert bb.fingerprint() not in (before, tiny.shared("llava").fingerprint())


def test_a_value_of_a_weight_in_another_memory_order_counts() -> None:
    model, processor = tiny.llava_parts()
    model.lm_head.weight.data = model.lm_head.weight.data.t().contiguous().t()
    bb = around(model, processor)
    before = bb.fingerprint()
    assert before == tiny.shared("llava").fingerprint()
    model.lm_head.weight.data[3, 3] += 1
    assert bb.fingerprint() != before


def test_a_model_that_was_adapted_after_wrapping_is_another() -> None:
    peft = pytest.importorskip("peft")
    model, processor = tiny.llava_parts()
    bb = around(model, processor)
    before = bb.fingerprint()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    assert bb.fingerprint() != before


def test_the_digest_of_large_files_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start reads no weight; other files, or other values in memory, are read."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_weights, "LARGE", 0)
    model, processor = tiny.llava_parts()
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    first = load(str(tmp_path / "m")).fingerprint()

    def fail(_: Any) -> str:
        raise AssertionError("the weights are read again")

    with monkeypatch.context() as patched:
        patched.setattr(_weights, "weights_digest", fail)
        assert load(str(tmp_path / "m")).fingerprint() == first
        assert load(str(tmp_path / "m"), dtype="bfloat16").fingerprint() == first
    changed = load(str(tmp_path / "m"))
    _multiply(changed.model)
    assert changed.fingerprint() != first
    _multiply(model)
    model.save_pretrained(tmp_path / "m")
    assert load(str(tmp_path / "m")).fingerprint() != first
