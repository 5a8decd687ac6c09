"""What a run says its editor was trained on, over the whole registry."""

from __future__ import annotations

from typing import Any

import pytest

from errata.core import registry
from errata.report.trained_on import NOTHING, trained_on

EDITORS = registry.names("editors")


def config_of(name: str, preset: str | None = None) -> dict[str, Any]:
    """The settings as a run records them."""
    config: dict[str, Any] = registry.load("editors", name)(preset=preset).summary["config"]
    return config


@pytest.mark.parametrize("name", EDITORS)
def test_every_kind_in_an_editors_settings_is_named(name: str) -> None:
    config = config_of(name)
    line = trained_on(config)
    kinds = [k for key, value in config.items() if key.endswith("_kinds") for k in value]
    if not kinds and not config.get("corpus"):
        assert line == NOTHING
    if "near_locality" in config.get("locality_kinds", ()):
        assert "Near locality (should stay)" in line or "Near locality" in line
    if "portability" in config.get("generality_kinds", ()):
        assert "Portability" in line


def test_who_trains_on_what_is_measured() -> None:
    trained = {n for n in EDITORS if "Portability" in trained_on(config_of(n))}
    assert trained == {"serac", "lte", "witness"}
    near = {n for n in EDITORS if "Near locality" in trained_on(config_of(n, _micro(n)))}
    assert {"serac", "lte", "mend", "ke", "tpatcher", "unike", "dualedit"} <= near


def _micro(name: str) -> str | None:
    return "micro-vlm" if "micro-vlm" in registry.load("editors", name).presets else None


@pytest.mark.parametrize("name", ["tpatcher", "unike", "dualedit"])
def test_a_preset_sees_far_prompts_only(name: str) -> None:
    usual, far = config_of(name, "micro-vlm"), config_of(name, "micro-vlm-far")
    assert "Near locality" in trained_on(usual) and "Near locality" not in trained_on(far)
    assert "T-locality, M-locality" in trained_on(far)
    changed = {key for key in usual if usual[key] != far[key]}
    assert len(changed) == 1 and changed <= {"memory_kinds", "tuning_kinds"}


def test_what_is_switched_off_was_not_seen() -> None:
    assert trained_on({"memory_kinds": ["near_locality"], "memory_weight": 0.0}) == NOTHING
    assert trained_on({"tuning_kinds": ["near_locality"], "threshold": 0.8}) == NOTHING
    assert trained_on({"gen_kinds": ["portability"], "gen": 2}).startswith("Portability")


def test_the_published_unike_has_its_own_alpha_and_no_added_loss() -> None:
    published, tuned = config_of("unike", "micro-vlm-eq7"), config_of("unike", "micro-vlm")
    assert published["alpha"] == "query" and tuned["alpha"] == 0.7
    assert published["act_weight"] == published["memory_weight"] == 0.0
    assert published["cutoff"] == -1.0, "every one of the K entries counts"
    changed = {key for key in tuned if tuned[key] != published[key]}
    assert changed == {"alpha", "cutoff", "act_weight", "memory_weight"}


def test_a_memory_of_far_prompts_holds_no_others() -> None:
    from errata.algorithms.neuron_keys import locality_prompts
    from errata.benchmarks.microworld import Microworld
    from errata.core.measure.benchmark import BenchmarkSpec
    from errata.training.optimise import generator

    cases = Microworld().load(BenchmarkSpec("microworld", ("vqa",), "dev")).cases[:20]
    far = {p.prompt for c in cases for p in c.probes if p.group == "far"}
    near = {p.prompt for c in cases for p in c.probes if p.kind == "near_locality"}
    own = {c.edit.prompt for c in cases}

    def drawn(*kinds: str) -> set[Any]:
        rng = generator(0, "test")
        return set(locality_prompts(cases, 10_000, rng, *([kinds] if kinds else [])))

    assert drawn("t_locality", "m_locality") == far
    assert drawn() == far | near | own
