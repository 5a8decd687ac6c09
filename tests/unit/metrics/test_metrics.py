"""Metrics against small tables; every number is derived by hand beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from errata.core import registry
from errata.core.errors import BadRun
from errata.core.measure.metric import Metric, ScoredProbe
from errata.core.types import Answer, Probe, Prompt, Scored


def metric(name: str) -> Metric:
    found = registry.load("metrics", name)()
    assert isinstance(found, Metric)
    return found


def probe(kind: str, reference: str = "red", group: str = "") -> Probe:
    return Probe(f"{kind}{group}", Prompt.of("?"), kind, group, reference)


def said(text: str = "", ids: tuple[int, ...] = (), *, stopped: bool = True) -> Answer:
    return Answer("c", "p", text=text, ids=ids, stopped=stopped)


def scored(ids: tuple[int, ...], argmax: tuple[int, ...]) -> Scored:
    return Scored(ids, (-1.0,) * len(ids), argmax)


def forced(ids: tuple[int, ...], argmax: tuple[int, ...]) -> Answer:
    return Answer("c", "p", reference=scored(ids, argmax))


BEFORE = said("blue", (9,))


def test_names() -> None:
    assert registry.names("metrics") == [
        *(
            "begins",
            "exact",
            "first_token",
            "joint",
            "judge",
            "legacy",
            "probability",
            "rest",
            "token",
            "word",
        )
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "wanted"),
    [
        ("red", "red", 1.0),
        (" Red.\n", "red", 1.0),  # strip, casefold, one trailing full stop
        ("red .", "red", 1.0),  # the space before the stop goes with it
        ("red..", "red", 0.0),  # only one stop is taken off
        ("red.", "red..", 1.0 - 1.0),  # "red" against "red."
        ("the red", "red", 0.0),  # the whole answer counts
        ("cafe\u0301", "caf\u00e9", 1.0),  # NFC
        ("STRASSE", "straße", 1.0),  # casefold
        ("", "red", 0.0),
    ],
)
def test_exact_text(answer: str, reference: str, wanted: float) -> None:
    assert metric("exact").score(BEFORE, said(answer), probe("reliability", reference)) == wanted


def test_exact_cap_is_wrong() -> None:
    assert metric("exact").score(BEFORE, said("red", stopped=False), probe("reliability")) == 0.0


@pytest.mark.parametrize(
    "kind", ["reliability", "t_generality", "m_generality", "portability", "efficacy"]
)
def test_exact_target_kinds(kind: str) -> None:
    assert metric("exact").score(said("red", (5,)), said("red", (5,)), probe(kind)) == 1.0
    assert metric("exact").score(said("blue", (9,)), said("blue", (9,)), probe(kind)) == 0.0


@pytest.mark.parametrize("kind", ["t_locality", "m_locality", "near_locality", "retention"])
def test_exact_locality_kinds(kind: str) -> None:
    exact, p = metric("exact"), probe(kind, "gold")
    assert exact.score(said("a", (1, 2)), said("a", (1, 2)), p) == 1.0  # gold plays no part
    assert exact.score(said("a", (1, 2)), said("a", (1, 3)), p) == 0.0  # ids decide, not the text
    assert exact.score(said("a", (1,)), said("a", (1,), stopped=False), p) == 0.0
    capped = said("a", (1,), stopped=False)
    assert exact.score(capped, capped, p) == 1.0


def test_no_answer_is_not_an_answer_that_was_kept() -> None:
    for name in ("exact", "joint"):
        keep = probe("t_locality", "gold")
        assert metric(name).score(said(""), said(""), keep) is None
        assert metric(name).score(said(" ", (4,)), said(" ", (4,)), keep) is None
        assert metric(name).score(said("a", (1,)), said(""), keep) == 0.0
        assert metric(name).score(said(""), said(""), probe("reliability")) == 0.0


def test_exact_by_the_tokens_of_the_reference() -> None:
    """A tokenizer may write "a , b" as "a, b": its tokens are then the target all the same."""
    after = Answer("c", "p", text="a, b", ids=(1, 2), reference=scored((1, 2), (1, 2)))
    assert metric("exact").score(BEFORE, after, probe("reliability", "a , b")) == 1.0
    assert metric("exact").score(BEFORE, after, probe("reliability", "a , c")) == 0.0
    other = replace(after, ids=(1, 3))
    assert metric("exact").score(BEFORE, other, probe("reliability", "a , b")) == 0.0


def test_exact_unscored() -> None:
    assert metric("exact").score(BEFORE, said("red"), probe("reliability", " . ")) is None
    assert metric("exact").score(BEFORE, said("red"), probe("vqa")) is None


def test_token_targets() -> None:
    token = metric("token")
    after = forced((1, 2, 3), (1, 7, 3))  # 2 of 3 right
    assert token.score(BEFORE, after, probe("t_generality")) == pytest.approx(2 / 3)
    assert token.score(BEFORE, BEFORE, probe("t_generality")) is None
    assert token.score(BEFORE, forced((), ()), probe("t_generality")) is None
    assert token.score(BEFORE, after, probe("vqa")) is None


def test_token_locality() -> None:
    token, p = metric("token"), probe("m_locality", group="far")
    before = Answer("c", "p", reference=scored((1, 2, 3, 4), (1, 8, 3, 9)), own=None)
    after = Answer(
        "c",
        "p",
        reference=scored((1, 2, 3, 4), (1, 8, 5, 4)),  # argmax kept at places 1 and 2: 2 of 4
        own=scored((6, 6, 6, 6), (6, 6, 6, 0)),  # own answer still first at 3 of 4
    )
    assert list(token.score_case([ScoredProbe(p, before, after)])) == [
        ("m_locality/far.token", 0.5),
        ("m_locality/far.token_own", 0.75),
    ]
    assert list(token.score_case([ScoredProbe(p, before, before)]))[1] == (
        "m_locality/far.token_own",
        None,
    )


def test_token_locality_needs_equal_ids() -> None:
    with pytest.raises(BadRun, match="different token ids"):
        metric("token").score(forced((1,), (1,)), forced((2,), (1,)), probe("t_locality"))


def test_legacy() -> None:
    legacy = metric("legacy")
    ten = tuple(range(10))
    swapped = (1, 0, *range(2, 10))  # ranks 1 and 2 changed places: 8 of 10 ranks equal
    before = Answer("c", "p", top=(ten, ten, ten))
    after = Answer("c", "p", top=(ten, swapped, ten))
    # text: top-1 at 3 places, the second differs: 2/3. image: (10 + 8 + 10) / 30 ranks.
    assert legacy.score(before, after, probe("t_locality")) == pytest.approx(2 / 3)
    assert legacy.score(before, after, probe("m_locality")) == pytest.approx(28 / 30)
    # a longer edited prompt is aligned at the right end: (swapped, ten) against (ten, ten)
    longer = Answer("c", "p", top=(ten, ten, ten, swapped, ten))
    short = Answer("c", "p", top=(ten, ten))
    assert legacy.score(short, longer, probe("t_locality")) == 0.5
    assert legacy.score(longer, short, probe("t_locality")) == 0.5
    assert legacy.score(BEFORE, after, probe("t_locality")) is None
    assert legacy.score(BEFORE, forced((1, 2), (1, 3)), probe("reliability")) == 0.5
    rows = [
        ScoredProbe(probe(k), before, after)
        for k in ("near_locality", "portability", "reliability")
    ]
    assert list(legacy.score_case(rows)) == [("reliability.legacy", None)]


def joint_rows(**answers: str | None) -> list[ScoredProbe]:
    """One row per kind; a target kind is right when it says red, a locality kind when blue."""
    rows = []
    for kind, text in answers.items():
        reference = "" if text is None else "red"
        after = said(text or "", (len(text or ""),))
        before = said("blue", (4,))
        rows.append(ScoredProbe(probe(kind, reference), before, after))  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ({"reliability": "red", "t_generality": "red", "t_locality": "blue"}, 1.0),
        ({"reliability": "no", "t_generality": "red", "t_locality": "blue"}, 0.0),
        ({"reliability": "red", "t_generality": "no", "t_locality": "blue"}, 0.0),
        ({"reliability": "red", "t_generality": "red", "near_locality": "red"}, 0.0),
        # portability does not count
        (
            {
                "reliability": "red",
                "m_generality": "red",
                "m_locality": "blue",
                "portability": "no",
            },
            1.0,
        ),
        # unknown AND true = unknown, unknown AND false = false (None: an empty reference)
        ({"reliability": "red", "t_generality": None, "t_locality": "blue"}, None),
        ({"reliability": "red", "t_generality": None, "t_locality": "red"}, 0.0),
        # a family without a probe cannot be judged
        ({"reliability": "red", "t_locality": "blue"}, None),
        ({"reliability": "red", "t_generality": "red"}, None),
    ],
)
def test_joint(rows: dict[str, str | None], wanted: float | None) -> None:
    assert list(metric("joint").score_case(joint_rows(**rows))) == [("joint.exact", wanted)]


def test_joint_ignores_the_panel() -> None:
    assert list(metric("joint").score_case(joint_rows(retention="blue"))) == []


def test_probability_compares_the_two_answers_per_token() -> None:
    asked = replace(probe("reliability"), contrast="light blue")
    new, true = Scored((1,), (-1.0,), (1,)), Scored((2, 3), (-0.9, -1.5), (2, 3))
    after = Answer("c", "p", reference=new, contrast=true)
    assert scores_of("probability", asked, after) == {
        "reliability.probability": 1.0,
        "reliability.p_reference": pytest.approx(math.exp(-1)),
        "reliability.p_contrast": pytest.approx(math.exp(-1.2)),
    }
    longer = replace(after, reference=Scored((1, 1), (-1.1, -1.2), (1, 1)), contrast=new)
    kept = replace(probe("t_locality"), contrast="x")
    assert scores_of("probability", kept, longer)["t_locality.probability"] == 0.0
    assert scores_of("probability", kept, Answer("c", "p"))["t_locality.p_contrast"] is None
    assert scores_of("probability", probe("reliability"), after) == {}


def test_begins_asks_for_every_token_of_the_target() -> None:
    rest = said("red ring, of course", (4, 5, 6), stopped=False)
    begun = replace(rest, reference=scored((4, 5), (4, 5)))
    assert scores_of("begins", probe("reliability"), begun) == {"reliability.begins": 1.0}
    assert scores_of("exact", probe("reliability", "red ring"), begun) == {"reliability.exact": 0.0}
    other = replace(rest, reference=scored((4, 5), (4, 9)))
    assert scores_of("begins", probe("reliability"), other) == {"reliability.begins": 0.0}
    assert scores_of("begins", probe("t_locality"), begun) == {}


def scores_of(metric: str, asked: Probe, after: Answer) -> dict[str, float | None]:
    return dict(registry.load("metrics", metric)().score_case([ScoredProbe(asked, BEFORE, after)]))
