"""Settings that were renamed are read under their old names, wherever they were written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest

import errata
from errata.cli.shared.options import parse_settings
from errata.core import registry
from errata.core.config import current_names, meanings, parse_config
from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.state import State
from errata.core.types import Edit, Prompt
from tests import tiny

LISTS = [
    (kind, name, field.name)
    for kind in ("editors", "analyses")
    for name in registry.names(kind)
    for field in fields(registry.load(kind, name).Config)
    if "tuple[" in str(field.type)
]


@pytest.mark.parametrize(("kind", "name", "setting"), LISTS)
def test_a_wrong_list_is_answered_with_an_example_that_works(kind, name, setting):
    make = registry.load(kind, name)
    with pytest.raises(BadSpec) as e:
        make(**{setting: object()})
    option = {"editors": "--set", "analyses": "--with"}[kind]
    example = re.search(rf"in a shell {option} '(.*)'\.$", str(e.value))
    assert example, str(e.value)
    parsed = parse_settings([example[1]])
    assert parsed.keys() == {setting} and isinstance(parsed[setting], list)
    assert isinstance(getattr(parse_config("x", "x", make.Config, parsed), setting), tuple)


OLD = {
    "mend": {"batch": 3, "accumulate": 2, "clip": 5.0, "every": 7, "keep": 9, "gen": 1, "loc": 4,
             "gen_pool": 2, "loc_pool": 5, "gen_kinds": ("portability",), "loc_kinds": (),
             "c_rel": 0.1, "c_gen": 0.2, "c_loc": 0.3},
    "ke": {"c_rel": 0.1, "c_gen": 0.2},
    "lte": {"loc_weight": 0.5},
    "dualedit": {"rel_weight": 0.1, "gen_weight": 0.2, "loc_weight": 0.3},
    "ft_l": {"clip": 2.0},
    "memit": {"essence": "{} was", "prefixes": "none"},
    "unike": {"clip": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_old_names_set_what_they_set_before(name: str) -> None:
    cls = registry.load("editors", name)
    today = {f.name for f in fields(cls.Config)}
    assert not today & OLD[name].keys(), "only today's names are shown"
    editor = cls(**OLD[name])
    new = current_names(cls.Config, OLD[name])
    assert {k: vars(editor.config)[k] for k in new} == new and new.keys() <= today
    assert editor.passed == new and editor.config == cls(**new).config


@dataclass(frozen=True, kw_only=True)
class Base:
    renamed: ClassVar[Mapping[str, str]] = {"old": "new", "older": "new"}
    new: int = 1


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    renamed: ClassVar[Mapping[str, str]] = {"mine": "ours"}
    old: int = 2  # a setting of today is never taken for the old name of another
    ours: int = 3


def test_the_names_of_bases_count_and_a_setting_of_today_keeps_its_name() -> None:
    assert current_names(Derived, {"old": 5, "older": 6, "mine": 7}) == {
        "old": 5, "new": 6, "ours": 7,
    }  # fmt: skip
    assert parse_config("thing", "x", Base, {"old": "4"}) == Base(new=4)


def test_a_setting_under_both_names_is_refused() -> None:
    for given in ({"old": 1, "new": 2}, {"new": 2, "older": 1}):
        with pytest.raises(BadSpec, match="'new' is given twice: 'old"):
            current_names(Base, given)


class Counting(Editor):
    """Works from a state that was made with a setting of another name."""

    name = "counting"
    state_settings = ("rank",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"big": {"size": 9}}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        renamed: ClassVar[Mapping[str, str]] = {"size": "rank"}
        rank: int = 2

    def find(self, backbone: Any, request: EditRequest) -> list[EditResult]:
        raise AssertionError("reached the search")


def test_states_and_presets_may_hold_old_names() -> None:
    bb = tiny.shared("llava")
    edit = Edit(Prompt.of("x is"), "red")
    assert Counting("big").config.rank == 9 and Counting("big", rank=3).config.rank == 3
    assert Counting("big", size=3).config.rank == 3
    state = State("counting", fingerprint=bb.fingerprint(), settings={"size": 2})
    with pytest.raises(AssertionError, match="reached the search"):
        Counting().edit(bb, [edit], state)
    with pytest.raises(BadSpec, match="was made with rank=2, now it is 5"):
        Counting(rank=5).edit(bb, [edit], state)


def test_meanings_are_read_from_docstrings_of_the_class_and_its_bases() -> None:
    @dataclass(frozen=True)
    class Base:
        """rate: how fast: in steps. low, high: ends of
        the scale; () = none. left: replaced below.
        """

        rate: float = 1.0
        low: int = 0
        high: int = 1
        left: int = 2

    @dataclass(frozen=True)
    class Mine(Base):
        """Mine. left: kept, unlike `high`: it is not low."""

        bare: int = 0

    assert meanings(Mine) == {
        "rate": "how fast: in steps.",
        "low": "ends of the scale; () = none.",
        "high": "ends of the scale; () = none.",
        "left": "kept, unlike `high`: it is not low.",
    }


@pytest.mark.parametrize("value", [2**31, -(2**31), 10**20])
@pytest.mark.parametrize("editor, name", [("lora", "rank"), ("ke", "tokens"), ("ft_l", "layers")])
def test_a_whole_number_that_no_tensor_can_have_is_refused(
    editor: str, name: str, value: int
) -> None:
    given = [value] if name == "layers" else value
    with pytest.raises(BadSpec, match=rf"setting '{name}' is beyond 2,147,483,647"):
        errata.editor(editor, **{name: given})
