"""Sampling one token, and the text of a growing answer."""

from __future__ import annotations

import pytest
import torch

from errata.serve.decoding.sampling import Sampler, Sampling, likeliest
from errata.serve.decoding.text import AnswerText

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def test_temperature_0_takes_the_likeliest_token():
    assert [Sampler(Sampling()).draw(LOGITS) for _ in range(5)] == [1] * 5


def test_tokens_are_drawn_as_often_as_they_are_likely():
    sampler = Sampler(Sampling(temperature=2.0, seed=4))
    n = 2000
    counts = torch.bincount(torch.tensor([sampler.draw(LOGITS) for _ in range(n)]), minlength=4)
    torch.testing.assert_close(counts / n, (LOGITS / 2).softmax(-1), atol=0.04, rtol=0)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.5, {1}), (0.7, {1, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_set_with_that_share(top_p, allowed):
    sampler = Sampler(Sampling(temperature=1.0, top_p=top_p, seed=1))
    assert {sampler.draw(LOGITS) for _ in range(500)} == allowed


def test_a_seed_repeats_an_answer_and_another_one_does_not():
    def drawn(seed):
        sampler = Sampler(Sampling(temperature=5.0, seed=seed))
        return [sampler.draw(LOGITS) for _ in range(40)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(-1) == drawn(-1)
    assert drawn(None) != drawn(None)


def test_a_tiny_temperature_does_not_overflow():
    assert Sampler(Sampling(temperature=1e-5, seed=0)).draw(LOGITS * 1e4) == 1


def test_log_probabilities_are_those_of_the_model():
    logprob, top = likeliest(LOGITS, 2, 2)
    expected = LOGITS.log_softmax(-1)
    assert logprob == pytest.approx(float(expected[2]))
    assert [t for t, _ in top] == [1, 2]
    assert top[0][1] == pytest.approx(float(expected[1]))


def grown(pieces: list[str], stops: list[str]) -> tuple[list[str], AnswerText]:
    """What is shown of a text that grows by these pieces."""
    text = AnswerText(lambda ids: "".join(pieces[i] for i in ids).strip(), stops)
    shown = []
    for n in range(1, len(pieces) + 1):
        shown.append(text.grow(range(n), last=n == len(pieces)))
        if text.ended:
            break
    return shown, text


def test_pieces_make_the_whole_text():
    shown, text = grown([" a", " blue", " ring", "\n"], [])
    assert "".join(shown) == text.text == "a blue ring"
    assert shown == ["a", " blue", " ring", ""]


def test_what_may_be_a_stop_is_held_back():
    shown, text = grown(["a E", "N", "D of", " it"], ["END."])
    assert shown == ["a ", "", "END of", " it"]
    assert not text.ended


@pytest.mark.parametrize("stops", [["END"], ["D of", "END"], ["END", "END of"]])
def test_the_answer_ends_in_front_of_the_first_stop(stops):
    shown, text = grown(["red E", "N", "D of", " it"], stops)
    assert "".join(shown) == text.text
    assert text.ended
    assert text.text in ("red ", "red EN")
    assert text.text == "red " if "END" in stops else "red EN"


def test_half_a_character_waits_for_its_other_half():
    shown, _ = grown(["a\ufffd", ""], [])
    assert shown[0] == "a"


def test_text_that_was_held_back_comes_at_the_end():
    shown, _ = grown(["the E", "N"], ["END"])
    assert shown == ["the ", "EN"]
