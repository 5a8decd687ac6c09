"""What language models differ in: their logits, activations, fused and transposed projections."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import errata
from errata.backbones._language import logits
from errata.backbones._language.activations import activation_of
from errata.core import registry
from errata.core.errors import BadBackbone, BadImage, BadSpec
from errata.core.types import Prompt
from errata.patches.neurons import activation
from errata.testing import zoo

# -- logits ---------------------------------------------------------------------------------------


class Config:
    def __init__(self, **numbers: Any) -> None:
        self.numbers = numbers

    def to_dict(self) -> dict[str, Any]:
        return self.numbers


@pytest.mark.parametrize(
    "own",
    [
        lambda z: z,
        lambda z: z * 0.0625,
        lambda z: z / 13.0,
        lambda z: torch.tanh(z / 30.0) * 30.0,
    ],
)
def test_the_rule_behind_the_head_is_found(own: Any) -> None:
    raw = logits.spread(torch.randn(1, 3, 50) * 1e-3)
    config = Config(a=0.0625, b=13.0, c=30.0, d=True, e="x", f=None, g=1.0, h=512)
    rule = logits.rule(raw, own(raw), config, "m")
    z = torch.randn(2, 7) * 40
    assert torch.equal(rule(z), own(z))


def test_an_unknown_rule_is_refused() -> None:
    raw = logits.spread(torch.randn(1, 3, 50))
    with pytest.raises(BadBackbone, match="in a way that errata does not know"):
        logits.rule(raw, raw.sin(), Config(a=2.0), "m")
    with pytest.raises(BadBackbone, match="logits differ by"):
        logits.check_same(raw, raw * 1.01, "m")


def test_a_model_whose_forward_does_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = zoo.ZOO["llama"].make()
    own = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        head = self.lm_head
        shift = head.register_forward_pre_hook(lambda _, x: (x[0] + 1.0,))
        try:
            return own(self, *args, **kwargs)
        finally:
            shift.remove()

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(BadBackbone, match="its own forward does more"):
        errata.wrap(model, tokenizer)


# -- activations ----------------------------------------------------------------------------------


def hosts(*modules: nn.Module) -> Iterator[nn.Module]:
    return iter(modules)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu", "gelu"),
        ("quick_gelu", "quick_gelu"),
        ("relu2", "relu2"),
        ("relu", "relu"),
        ("swish", "silu"),
        ("mish", ""),
    ],
)
def test_an_activation_is_known_by_what_it_computes(name: str, expected: str) -> None:
    from transformers.activations import ACT2FN

    host = nn.ModuleDict({"up": nn.Linear(2, 2), "dropout": nn.Dropout(), "act": ACT2FN[name]})
    config = SimpleNamespace(hidden_act=name)
    assert activation_of(hosts(host), config)[0] == expected
    bare = nn.ModuleDict({"up": nn.Linear(2, 2)})
    named = activation_of(hosts(bare), SimpleNamespace(hidden_activation=name))
    assert named[0] == expected
    if expected:
        x = torch.linspace(-3, 3, 50)
        assert torch.allclose(activation(expected, x), ACT2FN[name](x), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("bloom", "gelu_tanh"), ("mpt", "gelu"), ("opt", "relu"), ("gemma2", "gelu_tanh")],
)
def test_activations_of_models_that_do_not_name_them_alike(model: str, expected: str) -> None:
    assert zoo.loaded(model).activation("text.1.mlp") == expected


# -- projections ----------------------------------------------------------------------------------


def test_widths_of_transposed_and_fused_projections() -> None:
    gpt2, phi3 = zoo.loaded("gpt2"), zoo.loaded("phi3")
    assert gpt2.weight("text.0.mlp.down") == (128, 32)
    assert gpt2.weight("text.0.mlp.up") == (32, 128)
    assert gpt2.weight("text.0.attn.qkv") == (32, 96)
    assert gpt2.weight("embed") == (32, len(gpt2.tokenizer))
    assert phi3.weight("text.0.mlp.gate_up") == (32, 128) and phi3.gated("text.0.mlp")
    assert not gpt2.gated("text.0.mlp")


def test_a_fused_module_stands_for_its_parts() -> None:
    gpt2, llama = zoo.loaded("gpt2"), zoo.loaded("llama")
    assert gpt2.part_sites([0, 1], ("attn.q", "attn.v", "mlp.down")) == [
        "text.0.attn.qkv", "text.0.mlp.down", "text.1.attn.qkv", "text.1.mlp.down",
    ]  # fmt: skip
    assert llama.part_sites([1], ("attn.q", "attn.v")) == ["text.1.attn.q", "text.1.attn.v"]
    with pytest.raises(BadSpec, match=r"text\.0\.attn\.q'"):
        gpt2.site("text.0.attn.q")


def test_an_image_is_refused() -> None:
    with pytest.raises(BadImage, match="takes no images"):
        zoo.loaded("llama").encode([Prompt.of("What?", "data:,x")])


@pytest.mark.parametrize("given", [object(), nn.Linear(2, 2), {"a": 1}])
def test_what_is_no_tokenizer_is_refused(given: object) -> None:
    model, _ = zoo.ZOO["llama"].make()
    with pytest.raises(BadBackbone, match="Give the model's tokenizer"):
        errata.wrap(model, given)


# -- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("gpt2-xl", "gpt2-xl"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("EleutherAI/gpt-j-6B", "gpt-j"),
        ("EleutherAI/gpt-neox-20b", "gpt-neox"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
        ("meta-llama/Llama-3.2-1B", None),
        ("meta-llama/Meta-Llama-3-70B", None),
        ("openai-community/gpt2", None),
        ("someone/paper", None),
    ],
)
def test_a_published_preset_is_chosen_for_its_model(model: str, preset: str | None) -> None:
    memit: Any = registry.load("editors", "memit")
    assert memit.preset_for(model) == preset
    ike: Any = registry.load("editors", "ike")
    assert ike.preset_for("openai-community/gpt2-xl") is None
