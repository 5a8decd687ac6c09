"""Scope `subject`: a question belongs to the edit whose subject it names.

Nothing is trained, and the model is asked nothing. Of two subjects in one question the one of more
words counts. Of several edits of one subject, the one with the largest share of its other words in
the question.

Words are compared without regard to case. In a text without spaces (Chinese, Japanese) each sign is
a word.

Shapes: B questions, K edits, N numbers of a question: one for each run of at most `MOST` words;
keys are [K, 1 + W]: the number of the subject, then those of the other words of its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.core.errors import BadEdit, BadSpec
from errata.core.model.scope import PromptScope
from errata.core.types import Edit, Prompt
from errata.scopes._hashes import NONE, number, padded

#: words of the longest subject
MOST = 16
#: a number says in its last bits how many words it stands for
BITS = 5

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class SubjectScope(PromptScope):
    """A question that names the subject."""

    name = "subject"
    reach = "questions that name the subject, whatever they ask"

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptScope.Config):
        """words: least share of the edited question's other words that a question must have, from
        0 (it may ask anything about the subject) to 1 (all of them).
        """

        words: float = 0.0

    def __init__(self, state: Any = None, **passed: Any) -> None:
        super().__init__(state, **passed)
        if not 0 <= self.config.words <= 1:
            raise BadSpec(
                f"scope 'subject': words={self.config.words:g} is not a share. Give a number from "
                "0 to 1."
            )

    def query(self, backbone: object, prompts: Sequence[Prompt]) -> Tensor:
        """[B, N] the numbers of all runs of words."""
        rows = []
        for prompt in prompts:
            words = words_of(prompt.text)
            runs = {
                run_of(words[i : i + n])
                for n in range(1, MOST + 1)
                for i in range(len(words) - n + 1)
            }
            rows.append(torch.tensor([sorted(runs)], dtype=torch.long))
        return padded(rows)

    def keys(self, backbone: object, edits: Sequence[Edit]) -> Tensor:
        """[K, 1 + W]. Raises BadEdit for an edit without a subject that its prompt names."""
        rows = []
        for edit in edits:
            subject, words = words_of(edit.subject or ""), words_of(edit.prompt.text)
            starts = [i for i in range(len(words)) if words[i : i + len(subject)] == subject]
            if not 0 < len(subject) <= MOST or not starts:
                raise BadEdit(
                    f"scope 'subject': the edit '{edit.prompt.text[:60]}' needs a subject of 1 to "
                    f"{MOST} words that stands in its prompt, and has {edit.subject!r}. Give "
                    "--subject, or choose another scope: errata list scopes."
                )
            others = words[: starts[0]] + words[starts[0] + len(subject) :]
            row = [run_of(subject), *sorted({run_of([word]) for word in others})]
            rows.append(torch.tensor([row], dtype=torch.long))
        return padded(rows)

    def join(self, keys: Sequence[Tensor]) -> Tensor:
        return padded(keys)

    def replaced(self, old: Tensor, new: Tensor) -> Tensor:
        """Equal subjects and equal other words."""
        both = self.join([old, new])
        return super().replaced(both[: len(old)], both[len(old) :])

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        """[B, K] the words of the subject, and the share of the other words; 0 where it is not
        named, or where the share is too small.
        """
        real = keys != NONE
        known = torch.stack([torch.isin(keys, row) for row in query]) & real  # [B, K, 1 + W]
        named, others = known[..., 0], real[:, 1:].sum(-1).clamp(min=1)
        share = known[..., 1:].sum(-1) / others
        length = (keys[:, 0] & (2**BITS - 1)).float()
        # half a word at most, so that the longer subject counts
        score = length + share / 2
        found: Tensor = score * (named & (share >= self.config.words))
        return found

    def opens(self, score: Tensor) -> Tensor:
        return score > 0.5


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def run_of(words: Sequence[str]) -> int:
    """The number of some words in a row."""
    return (number(*words) >> BITS << BITS) | len(words)
