"""`list`, `show` and `check`: without a model."""

from __future__ import annotations

import json

import pytest

from errata.core import registry


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
