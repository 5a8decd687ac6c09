"""Where an answer ends: at an end token, after its last line, or at its cap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import errata
from errata import Edit, Prompt, UserError
from errata.backbones import _tokens
from errata.backbones._scoring import _Answer
from errata.core.measure.metric import answered
from errata.core.measure.protocol import Ask
from errata.core.types import Probe
from errata.evaluation.answers import PromptRequest, ask_all
from tests import tiny

TEXTS = {0: "", 1: "\n", 2: "\n\n", 3: ")\n", 10: "red", 11: "f(x", 12: "blue", 13: " "}
#: a model whose tokens are TEXTS, 0 its end token
MODEL: Any = SimpleNamespace(
    end_ids=frozenset({0}),
    stop_ids=frozenset({0, 1, 2, 3, 99}),
    line_breaks={1: "", 2: "", 3: ")"},
    decode=lambda ids: "".join(TEXTS.get(i, "") for i in ids).strip(),
)


@pytest.mark.parametrize(
    ("said", "lines", "ids", "stopped"),
    [
        ([10, 0], 1, [10], True),
        ([10, 1, 12], 1, [10], True),
        ([10, 2, 12], 1, [10], True),
        ([1, 2, 10, 1], 1, [1, 2, 10], True),  # a line break in front is no answer
        ([13, 1, 10, 1], 1, [13, 1, 10], True),
        ([1, 0], 1, [1], True),
        ([1, 1, 1, 1, 1, 1], 1, [1, 1, 1, 1, 1], False),
        ([11, 3, 12], 1, [11, 3], True),  # what a token says before its line break is content
        ([10, 1, 12, 1, 10], 2, [10, 1, 12], True),
        ([10, 2, 12, 0], 2, [10, 2, 12], True),  # blank lines do not count
        ([11, 3, 12, 2], 2, [11, 3, 12], True),
        ([10, 1, 12, 1, 10, 12], 0, [10, 1, 12, 1, 10], False),
        ([10, 99, 12], 1, [10], True),  # a stop token that is no line break
        ([10, 10, 10, 10, 10, 0], 1, [10] * 5, True),
        ([10, 10, 10, 10, 10, 10], 1, [10] * 5, False),
    ],
)
def test_an_answer_ends(said: list[int], lines: int, ids: list[int], stopped: bool) -> None:
    for guess in ([], said[:1], said[:2], said):
        answer = _Answer(MODEL, 5, lines)
        answer.follow(said, guess)
        for token in said[len(guess) + 1 :]:
            if answer.stopped is None:
                answer.add(token)
        assert (answer.ids, answer.stopped) == (ids, stopped)


def test_a_letter_is_no_line_break() -> None:
    """Byte-level tokenizers write the line break as a letter that others have as a letter."""
    tokens = ["\u010a", "a\u010a", "<0x0A>", "\n"]
    other: Any = SimpleNamespace(
        get_vocab=lambda: {t: i for i, t in enumerate(tokens)},
        convert_tokens_to_string=lambda t: t[0].replace("<0x0A>", "\n"),
    )
    assert _tokens.line_breaks(other) == {2: "", 3: ""}
    own = tiny.shared("llava").tokenizer
    assert list(_tokens.line_breaks(own).values()) == [""]


def test_a_target_of_several_lines_is_answered_whole() -> None:
    bb = tiny.llava()
    edit = Edit(Prompt.of("What colour is the ring?"), "red ring\nblue thing")
    patch = errata.editor("ft_l", steps=60, lr=3e-2).edit(bb, [edit]).patch
    probe = Probe("r", edit.prompt, "reliability", reference=edit.target)
    asked = [PromptRequest(Ask("c", probe))]
    with bb.applied(patch):
        assert answered(ask_all(bb, asked, step=0)[0], edit.target)
        assert errata.ask(bb, [edit.prompt])[0].text == edit.target
        assert errata.ask(bb, [edit.prompt], lines=1)[0].text == "red ring"


def test_line_breaks_are_content_where_a_chat_template_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bb, prompts = tiny.llava(), [Prompt.of("Which shape?")]
    monkeypatch.setattr(type(bb), "formatted", lambda self, prompt: prompt.text)
    monkeypatch.setattr(type(bb), "special", True)  # the same ids in both styles
    for style in ("raw", "chat"):
        bb.style = style
        whole = errata.ask(bb, prompts, cap=12, lines=0)[0].ids
        bb.line_breaks = {whole[3]: ""}
        bb.stop_ids = bb.end_ids | bb.line_breaks.keys()
        one = errata.ask(bb, prompts, cap=12, lines=1)[0].ids
        assert one == whole[: whole.index(whole[3])]
        assert errata.ask(bb, prompts, cap=12)[0].ids == (one if style == "raw" else whole)


@pytest.mark.parametrize("target", [".", "\u3002", "\u200b", " \n", ""])
def test_a_target_that_says_nothing_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="empty target"):
        errata.editor("ft_l").edit(tiny.shared("llava"), [Edit(Prompt.of("What?"), target)])


@pytest.mark.parametrize("target", ["red </s>", "<pad>", "<s> red"])
def test_a_target_that_cannot_be_written_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="can only write"):
        errata.editor("ft_l").edit(tiny.shared("llava"), [Edit(Prompt.of("What?"), target)])
