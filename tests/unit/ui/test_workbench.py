"""The logic of the playground, without its page: ask, correct, compare, take back, save, load."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

import errata
from errata.core.errors import BadEdit, BadImage, BadOutput, BadSpec, UnknownName
from errata.serve.failures import Refused
from errata.serve.settings import Limits
from errata.ui.choices import EVERYWHERE
from errata.ui.workbench import VISITORS, Request, Session, Workbench

pytestmark = pytest.mark.trained


@pytest.fixture(scope="module")
def model() -> Any:
    return errata.load("micro-vlm")


@pytest.fixture(scope="module")
def shared(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(model, folder=tmp_path_factory.mktemp("patches"), limits=Limits(pixels=10_000))


@pytest.fixture
def workbench(shared: Workbench, tmp_path: Path) -> Workbench:
    """The same one, with an empty folder."""
    shared.folder = shared.catalogue.folder = tmp_path
    shared.catalogue.loaded.clear()
    return shared


@pytest.fixture
def session(workbench: Workbench) -> Session:
    return Session(workbench)


def png(side: int = 40, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_example_is_corrected_seen_and_taken_back(session):
    request = session.choose(0)
    before = session.ask(request.question)
    assert before != request.target
    outcome = session.correct(request)
    assert outcome.ways[0].holds and outcome.sentence().startswith("It holds")
    kinds = [row.kind for row in outcome.rows]
    assert kinds[:2] == ["edited", "rephrased"] and {"near", "unrelated"} <= set(kinds)
    assert outcome.rows[0].before == before and outcome.rows[0].after == (request.target,)
    assert [c.on for c in session.corrections] == [True]
    assert session.ask(request.question) == request.target
    taken = session.undo()
    assert request.target in taken.label
    assert session.ask(request.question) == before
    with pytest.raises(BadEdit, match="nothing to take back"):
        session.undo()


def test_the_answers_are_those_of_the_library(session, model):
    request = session.choose(1)
    (plain,) = errata.ask(model, [session.example.prompt])
    assert session.ask(request.question) == plain.text
    session.correct(request)
    with model.applied(*session.live):
        (edited,) = errata.ask(model, [session.example.prompt])
    assert session.ask(request.question) == edited.text == request.target


def test_a_second_correction_of_a_picture_keeps_the_first(session):
    """Both in the reach of the picture, the second would take the place of the first."""
    first = session.choose(1)
    session.correct(first)
    second = Request(question="What colour is this thing?", target="red")
    outcome = session.correct(second)
    assert outcome.of_kind("earlier") and outcome.lost() == 0
    assert session.ask(second.question) == second.target
    assert session.ask(first.question) == first.target
    clash = session.compare(
        Request(question="Which background is this?", target="plum", reach="same_image"),
        "automatic", EVERYWHERE,
    )  # fmt: skip
    assert clash.lost(0) > 0, "a reach that was chosen is taken as it is"
    assert "earlier correction" in clash.sentence(0)


def test_corrections_are_switched_and_stacked(session):
    one, two = session.choose(0), session.choose(1)
    session.choose(0)
    session.correct(one)
    session.choose(1)
    session.correct(two)
    assert session.ask(two.question) == two.target
    session.use([1])
    assert session.ask(two.question) != two.target
    session.choose(0)
    assert session.ask(one.question) == one.target
    session.use([])
    assert session.live == [] and session.ask(one.question) != one.target
    session.use([1, 2])
    assert len(session.live) == 2


def test_a_saved_one_is_loaded_by_another_visitor(workbench, session):
    request = session.choose(0)
    session.correct(request)
    saved = session.save(" first ")
    assert saved.saved == "first" and workbench.saved() == ["first"]
    assert (workbench.folder / "first" / "patch.json").is_file()
    other = workbench.session("somebody else")
    other.choose(0)
    assert other.ask(request.question) != request.target
    loaded = other.load("first")
    assert request.target in loaded.words
    assert other.ask(request.question) == request.target
    with pytest.raises(BadEdit, match="in use already"):
        other.load("first")


@pytest.mark.parametrize("name", ["../up", "", "a b", "/etc/x", "a" * 65, ".hidden"])
def test_no_name_leaves_the_folder(session, name):
    session.correct(session.choose(0))
    with pytest.raises(BadSpec, match="no name of a patch"):
        session.save(name)
    with pytest.raises((Refused, BadEdit), match=r"there is no patch|there is nothing to load"):
        session.load(name)
    assert list(session.workbench.folder.iterdir()) == []


def test_a_name_is_used_once_and_saving_needs_a_folder(workbench, session, tmp_path):
    session.choose(0)
    with pytest.raises(BadEdit, match="nothing to save"):
        session.save("mine")
    session.correct(session.choose(0))
    session.save("mine")
    session.correct(session.choose(1))
    with pytest.raises(Refused, match="already"):
        session.save("Mine")
    workbench.folder = workbench.catalogue.folder = None
    with pytest.raises(BadOutput, match="--patches FOLDER"):
        session.save("other")


def test_two_ways_are_compared_and_none_is_kept(session):
    request = session.choose(0)
    before = session.ask(request.question)
    outcome = session.compare(request, "say", EVERYWHERE)
    assert [w.method for w in outcome.ways] == ["ft_l", "say"]
    assert outcome.ways[1].reach == EVERYWHERE
    assert all(len(row.after) == 2 for row in outcome.rows)
    assert outcome.rows[-1].after == (outcome.rows[-1].before, request.target)
    assert "changed too" in outcome.sentence(1)
    assert session.corrections == [] and session.ask(request.question) == before
    with pytest.raises(BadSpec, match="both ways are the same"):
        session.compare(request, request.method, request.reach)


def test_a_method_that_has_no_reach_is_used_without_one(session):
    """`ike` writes into the prompt, which no scope switches."""
    request = Request(**{**vars_of(session.choose(0)), "method": "ike"})
    assert session.correct(request).ways[0].reach == EVERYWHERE
    with pytest.raises(BadSpec, match="scope"):
        session.correct(Request(**{**vars_of(request), "reach": "same_image"}))


def vars_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def test_a_picture_of_ones_own(session):
    session.choose(0)
    session.upload(png())
    assert session.example is None
    own = session.ask("What colour is this thing?")
    session.remove_picture()
    assert session.picture is None and own
    outcome = session.correct(Request(question="Who made the ring?", target="Orlin"))
    assert outcome.ways[0].reach == EVERYWHERE  # there is no picture to limit it to
    assert [r.kind for r in outcome.rows].count("unrelated") == 3


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "0 bytes"), (b"no picture", "no image"), (png(101), "pixels"),
                      (png()[:60], "broken")],
)  # fmt: skip
def test_pictures_that_are_refused(session, data, why):
    session.choose(0)
    kept = session.picture
    with pytest.raises((Refused, BadImage), match=why):
        session.upload(data)
    assert session.picture is kept


def test_empty_and_endless_texts_are_refused(session):
    with pytest.raises(BadEdit, match="the question is empty"):
        session.ask(" \n")
    with pytest.raises(BadEdit, match="the right answer is empty"):
        session.correct(Request(question="What is it?", target=" "))
    with pytest.raises(BadEdit, match="2,001 letters"):
        session.ask("x" * 2001)
    with pytest.raises(UnknownName, match="unknown editor"):
        session.correct(Request(question="What is it?", target="red", method="nothing"))
    assert session.corrections == []


def test_what_is_offered_works_without_preparation(workbench):
    names = [c.name for c in workbench.methods]
    assert names[0] == "automatic" and {"ft_l", "lora", "memit"} <= set(names)
    assert not {"mend", "serac", "bridge"} & set(names)
    reaches = [c.name for c in workbench.reaches]
    assert {"automatic", EVERYWHERE, "same_image"} <= set(reaches)
    assert not {"oracle", "trained", "dualedit"} & set(reaches)
    assert all(c.words for c in (*workbench.methods, *workbench.reaches))
    assert 5 <= len(workbench.examples) <= 8
    assert all(e.near and e.unrelated and e.rephrase for e in workbench.examples)


def test_the_oldest_visitors_are_forgotten(workbench):
    workbench.sessions.clear()
    first = workbench.session("0")
    for n in range(1, VISITORS + 1):
        workbench.session(str(n))
    assert len(workbench.sessions) == VISITORS and workbench.session("0") is not first
    workbench.forget("0")
    assert "0" not in workbench.sessions
