"""`errata doctor --classes` and the classes in `errata list backbones`."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from errata.cli.shared import classes
from errata.core import registry
from errata.testing import class_checks, class_table, zoo


def test_doctor_tries_classes_and_says_which_editors_act(errata: Any) -> None:
    ran = errata("doctor", "--classes", "--only", "llama", "--editors", "ft_l,memit", "--json")
    (row,) = json.loads(ran.out)["classes"]
    assert row["class"] == "LlamaForCausalLM" and row["status"] == "works"
    assert row["editors"] == {"ft_l": "", "memit": ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a BACKBONE"),
        (("micro-vlm", "--classes"), "Leave out the BACKBONE"),
        (("micro-vlm", "--only", "llama"), "belong to --classes"),
        (("--classes", "--only", "lama"), "Did you mean 'llama'"),
        (("--classes", "--editors", "ft"), "unknown editor 'ft'"),
        (("micro-vlm", "--editor", "ft"), "unknown editor 'ft'"),
        (("micro-vlm", "--memory", "8GB"), "belong to an editor"),
        (("micro-vlm", "--editor", "ft_l", "--memory", "8"), "cannot read the memory '8'"),
        (("--classes", "--editor", "ft_l"), "--classes takes --editors"),
    ],
)
def test_wrong_options_of_doctor_are_said_in_one_line(
    errata: Any, arguments: tuple[str, ...], said: str
) -> None:
    ran = errata("doctor", *arguments)
    assert ran.code == 2 and said in ran.err, ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_list_names_every_class_of_the_zoo_with_its_status(errata: Any) -> None:
    rows = json.loads(errata("list", "backbones", "--json").out)
    listed = {r["name"]: r["status"] for r in rows if r["type"] == "class"}
    assert listed == {r["class"]: r["status"] for r in classes.stored()["classes"]}
    assert [r["name"] for r in classes.stored()["classes"]] == list(zoo.ZOO)


def test_a_refusing_editor_makes_a_class_partly_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row says why, without the folder of this run, and the printed lines group reasons."""
    editor = registry.load("editors", "ft_l")

    def refuse(self: object, bb: object, *args: object, **options: object) -> None:
        from errata.core.errors import BadSpec

        raise BadSpec(f"{bb.name} has no such site. Use another editor.")  # type: ignore[attr-defined]

    monkeypatch.setattr(editor, "edit", refuse)
    (row,) = class_table.examined(["llama"], ["ft_l", "rome"])
    assert row["status"] == "partly" and row["editors"]["rome"] == ""
    assert row["editors"]["ft_l"] == "LlamaForCausalLM has no such site. Use another editor."
    assert "not ft_l: LlamaForCausalLM has no such site." in "\n".join(classes.lines(row))


def test_an_editor_that_leaves_a_trace_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(class_checks, "weights", lambda _: next(calls))
    (row,) = class_table.examined(["llama"], ["ft_l"])
    assert row["status"] == "fails" and "a weight was written" in row["reason"]


def test_every_class_with_images_is_tried_or_named(
    errata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    monkeypatch.setattr(class_table, "examined", lambda names, editors: iter(()))
    ran = errata("doctor", "--classes", "--json")
    others = json.loads(ran.out)["not_tried"]
    named = {o["cls"] for o in others} | {m.cls for m in zoo.ZOO.values()}
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) <= named
    assert not {o["cls"] for o in others} & {m.cls for m in zoo.ZOO.values()}
    assert "timm): FastVlmForConditionalGeneration" in errata("doctor", "--classes").out
