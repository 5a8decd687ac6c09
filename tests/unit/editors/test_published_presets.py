"""docs/published-settings.md: each preset that it names exists and fits its model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from errata.core import registry

PAGE = Path(__file__).parents[3] / "docs" / "published-settings.md"
MODELS = ("blip2-opt", "llava-1.5", "minigpt4")
DEPTH = 32  # text blocks of all three
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \w+ \| [`-]", line)
]
NAMED = [
    (row[0], preset.strip("`"), model)
    for row in ROWS
    for preset, model in zip(row[1:4], MODELS, strict=True)
    if preset != "-"
]
#: settings that are numbers of text blocks
LAYERS = (
    *("layers", "latent_layers", "noise_layers"),
    *("layer", "text_layer", "visual_layer", "gate_layer"),
)


def _preset(editor: str, preset: str) -> Any:
    return registry.load("editors", editor)(preset=preset).config


@pytest.mark.parametrize(("editor", "preset", "model"), NAMED)
def test_a_preset_of_the_table_exists_and_fits_its_model(editor, preset, model) -> None:
    config = _preset(editor, preset)
    for name in LAYERS:
        value = vars(config).get(name)
        for layer in value if isinstance(value, tuple) else (value,):
            assert layer is None or -DEPTH <= layer < DEPTH, f"{name}={layer}"
    other = [m for m in MODELS if preset.endswith(m)]
    assert other in ([], [model]), "a preset named after another model"
    assert not vars(config).get("eos"), "published targets have no end"


def test_every_preset_named_after_one_of_the_models_is_in_the_table() -> None:
    for editor in registry.names("editors"):
        for preset in registry.load("editors", editor).presets:
            if preset.endswith(MODELS):
                assert any((editor, preset) == n[:2] for n in NAMED), f"{editor} {preset}"


def test_every_editor_with_values_for_vlms_has_a_row() -> None:
    without = {"rome", "memit", "pmet", "alphaedit", "lora", "bridge", "say", "witness"}
    assert {row[0] for row in ROWS} | without == set(registry.names("editors"))


def test_the_values_are_the_published_ones() -> None:
    """From the yaml files that the page names."""
    steps = {
        ("ft_l", "vlkeb"): (1e-4, 10), ("ft_l", "vlkeb-blip2-opt"): (2e-4, 15),
        ("ft_l", "vlkeb-minigpt4"): (1e-4, 15), ("ft_v", "vlkeb"): (1e-4, 10),
        ("ft_v", "vlkeb-blip2-opt"): (2e-4, 15), ("ft_v", "vlkeb-minigpt4"): (1e-4, 15),
        ("ft_l", "paper"): (1e-3, 25), ("ft_v", "paper"): (1e-3, 25),
        ("mend", "paper"): (1e-6, 30_000), ("mend", "paper-llava-1.5"): (1e-6, 50_000),
        ("ke", "paper"): (3e-4, 30_000), ("serac", "vlm_port"): (1e-5, 50_000),
        ("serac", "vlm_port-minigpt4"): (1e-5, 20_000), ("tpatcher", "vlm_port"): (1e-2, 25),
        ("unike", "paper"): (7.5e-4, 10), ("serac", "vlkeb-minigpt4"): (5e-5, 20_000),
    }  # fmt: skip
    for (editor, preset), wanted in steps.items():
        config = _preset(editor, preset)
        assert (config.lr, config.steps) == wanted, (editor, preset)
    blocks = {"paper-blip2-opt": 19, "paper": 18, "paper-minigpt4": 17}
    for preset, layer in blocks.items():
        config = _preset("visedit", preset)
        assert (config.layer, config.noise_layers) == (layer, tuple(range(layer + 1, 31)))
    for preset, threshold in (("leaky-blip2-opt", 0.8), ("leaky-llava-1.5", 0.6)):
        config = _preset("dualedit", preset)
        assert (config.gate, config.threshold) == ("leaky", threshold)
        assert (config.text_layer, config.visual_layer) == (16, 19)
    config = _preset("unike", "paper")
    assert (config.layers, config.neurons, config.top) == ((-4, -3, -2, -1), 10, 40)
    for editor in ("ke", "mend"):
        assert _preset(editor, "paper").layers == (-3, -2, -1)
        assert _preset(editor, "paper").parts == ("mlp.up", "mlp.down")
    assert _preset("ike", "easyedit").demonstrations == 32
    assert (_preset("lte", "vlm_port").lr, _preset("lte", "vlm_port").threshold) == (5e-6, 0.3)
