"""What the reader is told: the sentence, the verdicts, and HTML in which nothing is a tag."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image as Pillow

from errata.core.types import Image
from errata.ui import html
from errata.ui.outcome import Answered, DrawnTriple, Outcome, Way

WAY = Way("ft_l", "same_image", True)
EDITED = Answered("edited", "Which?", None, "blue", ("Red.",), "red")
NEAR = Answered("near", "What size?", None, "big", ("big",), "red")
FAR = Answered("unrelated", "Who?", None, "Anna", ("Orlin",), "red")


def test_the_sentence_says_whether_it_holds_and_what_else_changed():
    assert Outcome((WAY,), (EDITED, NEAR), "red").sentence() == (
        "It holds: the answer is now “Red.”. No other question changed (1 asked)."
    )
    missed = Outcome((replace(WAY, holds=False),), (replace(EDITED, after=("blue",)), FAR), "red")
    assert missed.sentence() == (
        "It does not hold: the answer is “blue”, not “red”. 1 of 1 other question changed too."
    )
    words = replace(EDITED, kind="rephrased", after=("blue",))
    assert "in other words" in Outcome((WAY,), (EDITED, words), "red").sentence()
    assert Outcome((WAY,), (EDITED,), "red").sentence().endswith("“Red.”.")
    lost = Outcome((WAY,), (EDITED, replace(FAR, kind="earlier")), "red")
    assert lost.lost() == 1 and "1 earlier correction no longer" in lost.sentence()


def test_verdicts():
    assert EDITED.verdict(0) == "as it should be"
    assert replace(EDITED, after=("blue",)).verdict(0) == "not as it should be"
    assert (NEAR.verdict(0), FAR.verdict(0)) == ("unchanged", "changed")


def test_texts_are_never_tags():
    evil = "<script>alert(1)</script>"
    row = replace(EDITED, question=evil, before=evil, after=(evil,), target=evil)
    picture = Pillow.new("RGB", (8, 8))
    drawn = DrawnTriple(picture, picture, picture, evil, evil)
    way = Way(evil, evil, False)
    made = [
        html.outcome_html(Outcome((way,), (row,), evil, (drawn,))),
        html.outcome_html(Outcome((way, way), (replace(row, after=(evil, evil)),), evil)),
        html.line_html(evil, "bad"),
        html.answer_html(evil, evil, 1),
        html.head_html(evil),
    ]
    assert all("<script" not in text and "&lt;script" in text for text in made)


def test_the_table_of_two_ways_has_both_answers_and_pictures():
    picture = Image(
        "microworld:shape=ring,colour=blue,pattern=striped,accent=black,size=small,position=centre,"
        "background=grey,seed=1"
    )
    row = replace(EDITED, picture=picture, after=("red", ""))
    text = html.outcome_html(Outcome((WAY, replace(WAY, method="say")), (row,), "red"))
    assert "After A" in text and "After B" in text and "(nothing)" in text
    assert text.count("data:image/png;base64,") == 1
    assert "A: ft_l, same_image" in text and "B: say, same_image" in text


def test_a_line_is_read_out_when_something_is_wrong():
    assert 'role="alert"' in html.line_html("No.", "bad")
    assert 'role="status"' in html.line_html("Yes.", "good")
    assert html.line_html("", "good") == ""


def test_large_pictures_are_shown_small():
    import base64
    import io

    data = html.thumb(Pillow.new("RGBA", (2000, 1000)), 160).partition(",")[2]
    assert Pillow.open(io.BytesIO(base64.b64decode(data))).size == (160, 80)
