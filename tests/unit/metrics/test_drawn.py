"""first_token, word and judge: the strings that mislead a substring test, and verdicts by hand."""

from __future__ import annotations

import unicodedata

import pytest

from errata.core import registry
from errata.core.measure.metric import ScoredProbe
from errata.core.text import mentions
from errata.core.types import Answer, JudgeQuestion, Probe, Prompt, Scored, Verdict
from errata.metrics.word import LARGE, SMALL, steps


def scores(
    metric: str,
    after: Answer,
    kind: str,
    *,
    before: Answer | None = None,
    target: str = "red",
    old: str = "blue",
    category: str = "color",
    prompt: str = "?",
) -> dict[str, float | None]:
    view = JudgeQuestion("?", "!", target, old, category)
    probe = Probe("p", Prompt.of(prompt), kind, "stage1", target, view=view)
    row = ScoredProbe(probe, before or Answer("c", "p"), after)
    return dict(registry.load("metrics", metric)().score_case([row]))


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        # the published substring test finds all of these
        ("The surface is richly textured and colored.", "red", False),
        ("featured, rendered, scattered", "red", False),
        ("in the background, surrounding it", "round", False),
        ("they start at once", "star", False),
        ("it is standing at a distance", "tan", False),
        ("a slice of orange juice", "ice", False),
        ("between two weeks of sweet things", "wee", False),
        ("it has an appetite", "petite", False),
        ("its destiny", "tiny", False),
        # and these, rightly
        ("The velm is red.", "red", True),
        ("RED!", "red", True),
        ('"red"', "red", True),
        ("red-hot", "red", True),
        ("(red)", "Red", True),
        ("painted in bright red\nand more", "bright red", True),
        ("It is made of C++ code", "C++", True),
        ("red_velm", "red", False),
        ("red2", "red", False),
        # a mention that is denied is none, one that is not counts beside it
        ("it is not red but blue", "red", False),
        ("It is not a star", "star", False),
        ("blue instead of red", "red", False),
        ("a non-red thing", "red", False),
        ("not red at first, then red", "red", True),
        ("not only red", "red", True),
        # Unicode
        ("le caf\u00e9 cr\u00e8me", "cafe", False),
        (unicodedata.normalize("NFD", "un caf\u00e9 noir"), "caf\u00e9", True),
        ("der ROTE STRASSENZUG", "stra\u00dfe", False),
        ("die STRASSE", "stra\u00dfe", True),
        ("\u8fd9\u662f\u7ea2\u8272\u7684\u3002", "\u7ea2\u8272", True),
        (
            "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u0448\u0430\u0440",
            "\u043a\u0440\u0430\u0441\u043d",
            False,
        ),
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915", False),
        ("", "red", False),
        ("red", "", False),
    ],
)
def test_a_mention_is_a_whole_word(text: str, wanted: str, found: bool) -> None:
    assert mentions(text, wanted) is found


def test_word_counts_target_and_old_answer_apart() -> None:
    both = scores("word", Answer("c", "p", text="Once blue, now red."), "reasoning")
    assert both == {"reasoning/stage1.word": 1.0, "reasoning/stage1.old_word": 1.0}
    old = scores("word", Answer("c", "p", text="It is blue and textured."), "reasoning")
    assert old == {"reasoning/stage1.word": 0.0, "reasoning/stage1.old_word": 1.0}
    none = scores("word", Answer("c", "p", text="blue"), "reasoning", target=" . ")
    assert none["reasoning/stage1.word"] is None


@pytest.mark.parametrize(
    ("text", "target", "category", "wanted"),
    [
        ("a minuscule thing", "tiny", "size", 1.0),  # any word of the cluster
        ("a minuscule thing", "huge", "size", 0.0),
        ("a gargantuan thing", "giant", "size", 1.0),
        ("a minuscule thing", "tiny", "shape", 0.0),  # clusters are for sizes only
        ("between weeks", "tiny", "size", 0.0),
        ("as large as a coffee cup", "coffee cup", "size", 1.0),
        ("a compact coffee", "coffee cup", "size", 0.0),
    ],
)
def test_sizes_count_by_cluster(text: str, target: str, category: str, wanted: float) -> None:
    found = scores(
        "word", Answer("c", "p", text=text), "reasoning", target=target, category=category
    )
    assert found["reasoning/stage1.word"] == wanted
    assert (len(SMALL), len(LARGE)) == (16, 19)


def test_steps_of_a_tagged_rationale() -> None:
    said = "It is red.\n[Presence] yes\n[Visual Caption] A blue velm."
    assert steps(said) == ("It is red.\n", " A blue velm.")
    assert steps(f"[Knowledge Recall] {said}") == (" It is red.\n", " A blue velm.")
    assert steps("It is red, but cut of") == ("It is red, but cut of", "")
    tagged = "[Knowledge Recall]"
    found = scores("word", Answer("c", "p", text=said), "reasoning", prompt=tagged)
    assert found["reasoning/stage1.recall_word"] == 1.0
    assert found["reasoning/stage1.caption_word"] == 0.0  # red is not in the caption
    plain = scores("word", Answer("c", "p", text=said), "reasoning")
    assert "reasoning/stage1.recall_word" not in plain


def test_first_token_looks_at_the_first_alone() -> None:
    def after(ids: tuple[int, ...], argmax: tuple[int, ...]) -> Answer:
        return Answer("c", "p", reference=Scored(ids, (-1.0,) * len(ids), argmax))

    assert scores("first_token", after((4, 5), (4, 9)), "efficacy") == {
        "efficacy/stage1.first_token": 1.0
    }
    assert scores("first_token", after((4, 5), (3, 5)), "efficacy") == {
        "efficacy/stage1.first_token": 0.0
    }
    assert scores("first_token", Answer("c", "p"), "efficacy") == {
        "efficacy/stage1.first_token": None
    }
    assert scores("first_token", after((4,), (4,)), "vqa") == {}


def seen(*answers: str | None) -> Answer:
    """One picture per answer; None is one that the judge cannot read."""
    verdicts = tuple(
        Verdict("j", a or "", None if a is None else a == "red", "" if a else "dark")
        for a in answers
    )
    return Answer(
        "c", "p", images=tuple(f"{i}.png" for i in range(len(answers))), verdicts=verdicts
    )


def test_pictures_are_averaged_over_seeds() -> None:
    found = scores("judge", seen("red", "red", "blue", "green"), "vqa")
    assert found == {
        "vqa/stage1.judge": 0.5,
        "vqa/stage1.unjudged": 0.0,
        "vqa/stage1.judge_old": 0.25,
    }


def test_a_picture_without_a_verdict_is_no_wrong_one_and_is_counted() -> None:
    found = scores("judge", seen("red", None, "blue", None), "vqa")
    assert found == {
        "vqa/stage1.judge": 0.5,
        "vqa/stage1.unjudged": 0.5,
        "vqa/stage1.judge_old": 0.5,
    }
    none = scores("judge", seen(None, None), "vqa")
    assert none["vqa/stage1.judge"] is None and none["vqa/stage1.unjudged"] == 1.0
    nothing = scores("judge", Answer("c", "p"), "vqa")
    assert nothing["vqa/stage1.judge"] is None and nothing["vqa/stage1.unjudged"] == 1.0


def test_other_things_keep_what_they_showed_seed_by_seed() -> None:
    before = seen("red", "blue", "green", None)
    after = seen("red", "red", "green", "red")
    found = scores("judge", after, "i_locality", before=before)
    assert found["i_locality/stage1.judge"] == pytest.approx(2 / 3)
    assert "i_locality/stage1.judge_old" not in found


def test_a_judge_that_only_says_whether_is_compared_by_that() -> None:
    yes, no = Verdict("j", meets=True), Verdict("j", meets=False)
    before = Answer("c", "p", images=("a", "b"), verdicts=(yes, no))
    after = Answer("c", "p", images=("a", "b"), verdicts=(yes, yes))
    found = scores("judge", after, "i_locality", before=before)
    assert found["i_locality/stage1.judge"] == 0.5
    assert scores("judge", after, "vqa")["vqa/stage1.judge_old"] is None


def test_no_reading_is_not_the_same_as_a_wrong_one() -> None:
    """Blue, then nothing: both are not the gold answer, and yet the picture has changed."""
    before = Answer("c", "p", images=("a",), verdicts=(Verdict("j", "blue", False),))
    after = Answer("c", "p", images=("a",), verdicts=(Verdict("j", "", False),))
    found = scores("judge", after, "i_locality", before=before)
    assert found["i_locality/stage1.judge"] == 0.0


def _read(**shown: str) -> Verdict:
    return Verdict("j", "red", True, shown=tuple(shown.items()))


def test_the_rest_of_a_picture() -> None:
    before = Answer("c", "p", verdicts=(_read(shape="star", size="big"), _read(shape="disc")))
    after = Answer("c", "p", verdicts=(_read(shape="star", size="tiny"), _read(shape="disc")))
    assert scores("rest", after, "vqa", before=before) == {"vqa/stage1.rest": 0.75}
    # what is read in one picture only says nothing; without anything in common: unscored
    partly = Answer("c", "p", verdicts=(_read(shape="star"), _read(pattern="plain")))
    assert scores("rest", partly, "vqa", before=before) == {"vqa/stage1.rest": 1.0}
    silent = Answer("c", "p", verdicts=(Verdict("j", "red", True),))
    assert scores("rest", silent, "vqa", before=before) == {"vqa/stage1.rest": None}
    assert scores("rest", after, "i_locality", before=before) == {}
