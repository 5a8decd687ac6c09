"""IKE's copy demonstration."""

from __future__ import annotations

import errata
from errata.core.types import Edit, Prompt
from tests import tiny

EDIT = Edit(Prompt.of("Which shape is it?"), "ring", id="e")


def test_the_fact_is_shown_once_and_twice_on_request():
    bb, shown = tiny.shared("llava"), {}
    for copy in (False, True):
        editor = errata.editor("ike", demonstrations=0, encoder="backbone", copy=copy)
        with bb.applied(editor.edit(bb, [EDIT]).patch):
            shown[copy] = bb.rewritten(Prompt.of("Shape?")).text
    fact = "New Fact: Which shape is it? ring\n"
    assert shown[False] == f"{fact}Prompt: Shape?"
    assert shown[True] == f"{fact}Prompt: Which shape is it? ring\n\n{shown[False]}"


def test_easyedits_preset_is_the_papers_with_the_copy():
    paper, easyedit = (errata.editor("ike", preset=p).summary for p in ("paper", "easyedit"))
    assert easyedit["config"] == {**paper["config"], "copy": True}
