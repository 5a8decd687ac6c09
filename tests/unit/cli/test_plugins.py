"""`list`, `show` and `check`: without a model."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from errata.cli.shared.options import bundled_models
from errata.core import registry
from errata.core.config import meanings


@pytest.mark.parametrize(
    "kind", ["editors", "backbones", "benchmarks", "protocols", "metrics", "analyses"]
)
def test_list_names_everything_with_a_summary(errata, kind):
    ran = errata("list", kind, "--json")
    rows = json.loads(ran.out)
    assert ran.code == 0
    assert set(registry.names(kind)) <= {row["name"] for row in rows}
    assert all(row["summary"] for row in rows)
    text = errata("list", kind).out
    assert all(row["name"] in text for row in rows)


def test_the_first_editors_are_there(errata):
    names = {row["name"] for row in json.loads(errata("list", "editors", "--json").out)}
    assert {"ft_l", "ft_v", "tpatcher", "ike", "lora"} <= names


def test_kinds_without_a_plug_in_are_said_to_be_empty(errata, monkeypatch):
    monkeypatch.setattr(registry, "names", lambda kind: [])
    ran = errata("list", "judges")
    assert (ran.code, ran.out) == (0, "no judges yet\n")


@pytest.mark.parametrize("name", registry.names("editors"))
def test_show_editor(errata, name):
    ran = errata("show", "editor", name)
    assert ran.code == 0
    assert "settings:" in ran.out
    facts = json.loads(errata("show", "editor", name, "--json").out)
    assert facts["name"] == name
    assert facts["documentation"]
    assert all(" = " in v or "required" in v for v in facts["settings"].values())


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("backbones", "capabilities"),
        ("benchmarks", "tasks"),
        ("protocols", "default"),
        ("metrics", "version"),
    ],
)
def test_show_other_kinds(errata, kind, key):
    for name in registry.names(kind):
        ran = errata("show", kind.removesuffix("s"), name, "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)[key]


def test_check_names_the_known_plug_ins(errata):
    ran = errata("check", "ft_I")
    assert ran.code == 2
    assert "unknown plug-in 'ft_I'" in ran.err


def test_check_prints_a_line_per_property(errata):
    ran = errata("check", "one_step")
    assert ran.code == 0, ran.err
    assert "holds protocols/one_step" in ran.out
    assert "fails" not in ran.out


def test_check_fails_when_a_property_does_not_hold(errata, monkeypatch):
    from errata import contract

    monkeypatch.setattr(contract, "run", lambda name: False)
    assert errata("check", "one_step").code == 1


@pytest.mark.parametrize("kind", ["editors", "analyses"])
def test_every_setting_has_a_meaning(kind):
    lacking = {}
    for name in registry.names(kind):
        config = registry.load(kind, name).Config
        said = meanings(config)
        lacking[name] = [f.name for f in fields(config) if len(said.get(f.name, "").split()) < 3]
    assert not {name: settings for name, settings in lacking.items() if settings}


def test_show_prints_the_meaning_of_a_setting_below_it(errata):
    lines = errata("show", "editor", "memit").out.splitlines()
    at = lines.index("  kl_factor: float = 0.0625")
    assert "weight of the KL term" in lines[at + 1]
    facts = json.loads(errata("show", "editor", "memit", "--json").out)
    assert facts["meanings"].keys() == facts["settings"].keys()


def test_a_bundled_model_is_shown_with_its_card(errata):
    for name in bundled_models():
        ran = errata("show", "backbone", name)
        assert ran.code == 0 and "kind: bundled model" in ran.out
        assert f"# {name}" in ran.out and "license:" not in ran.out
        assert f"`errata doctor {name}`" in errata("check", name).err


def test_an_unknown_plug_in_is_one_short_line_that_says_what_to_do(errata):
    ran = errata("check", "no_such_thing")
    assert ran.code == 2 and len(ran.err) < 350
    assert "pip install -e ." in ran.err and "errata list" in ran.err
    assert "Did you mean 'memit'?" in errata("check", "menit").err


def test_an_editor_with_its_preset_is_told_apart(errata, tmp_path):
    ran = errata("edit", "micro-vlm", "--editor", "ke:paper", "--prompt", "p", "--target", "t",
                 "--out", tmp_path / "p")  # fmt: skip
    assert ran.code == 2 and "--editor ke --preset paper" in ran.err
    assert errata("show", "editor", "ke:paper").code == 0
