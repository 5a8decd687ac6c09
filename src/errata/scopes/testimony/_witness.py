"""What the unedited model says of prompts, as vectors whose products are agreements.

Shapes: B prompts, Q questions, R fixed pictures, m buckets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.scope import CHUNK
from errata.core.state import PrepareContext
from errata.core.types import Image, Prompt
from errata.scopes._hashes import number, picture

BUCKETS = 128  # tokens are counted in so many; of a large vocabulary several tokens share one
LEAST = 1e-3  # answers that agree less are as different as can be
PRIME = 2_654_435_761
KEPT = 20_000  # remembered answers
WORDS = 16  # tokens of a whole answer that are compared


@dataclass(frozen=True)
class Panel:
    """What is asked: questions about a picture, and the pictures that a question is put to."""

    questions: tuple[str, ...]
    pictures: tuple[Image, ...]

    def pack(self) -> dict[str, Any]:
        return {
            "questions": list(self.questions),
            "pictures": [[i.uri, i.sha256] for i in self.pictures],
        }

    @classmethod
    def unpack(cls, meta: Mapping[str, Any]) -> Panel:
        return cls(tuple(meta["questions"]), tuple(Image(*i) for i in meta["pictures"]))


class Witness:
    """Asks the unedited model, each question once; the workers of `work` share the asking."""

    def __init__(
        self, backbone: Backbone, panel: Panel, work: PrepareContext | None = None
    ) -> None:
        self.backbone, self.panel, self.work = backbone, panel, work or PrepareContext()
        self.known: dict[Hashable, Tensor] = {}
        self.answers: dict[Hashable, Tensor] = {}

    def __reduce__(self) -> Any:
        return dict, ()  # it holds the model: a copy in another process asks anew

    def of(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, Q + R + 2, m + 1]: testimonies, answers of the fixed pictures, belief, answer."""
        asked = [self._questions(p) for p in prompts]
        self._answer({row[-1][0]: p for row, p in zip(asked, prompts, strict=True)})
        answers = torch.stack([self.answers[row[-1][0]] for row in asked])
        return torch.cat([self._said(asked), answers[:, None]], dim=1)

    def testimonies(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, Q, m + 1] what is said of the pictures of prompts; their words are not asked."""
        return self._said([self._questions(p)[: len(self.panel.questions)] for p in prompts])

    def _said(self, asked: Sequence[Sequence[tuple[Hashable, Prompt | None]]]) -> Tensor:
        """[B, n, m + 1] the answers to n questions about each prompt."""
        self._ask({key: p for row in asked for key, p in row if p is not None})
        nothing = torch.zeros(BUCKETS + 1)
        nothing[-1] = 1.0  # no picture: agrees with no picture alone
        rows = [[nothing if p is None else self.known[key] for key, p in row] for row in asked]
        return torch.stack([torch.stack(row) for row in rows])

    def relations(self, said: Tensor) -> Tensor:
        """[B, R, m + 1] the answers about the fixed pictures, of what `of` returns."""
        count = len(self.panel.questions)
        return said[:, count : count + len(self.panel.pictures)]

    def _questions(self, prompt: Prompt) -> list[tuple[Hashable, Prompt | None]]:
        """(key, what is asked) in the order of `of`; None where there is no picture to ask about.

        Of several pictures all are shown.
        """
        seen = tuple(map(picture, prompt.images))
        about: list[tuple[Hashable, Prompt | None]] = [
            ((q, seen), Prompt((*prompt.images, q)) if seen else None) for q in self.panel.questions
        ]
        for image in self.panel.pictures:
            key = (prompt.text, (picture(image),))
            about.append((key, Prompt.of(prompt.text, image)))
        if len(prompt.segments) - len(seen) == 1 and not isinstance(prompt.segments[-1], Image):
            return [*about, ((prompt.text, seen), prompt)]
        return [*about, (prompt.segments, prompt)]

    def _ask(self, asked: Mapping[Hashable, Prompt]) -> None:
        self._remember(self.known, asked, _roots)

    def _answer(self, asked: Mapping[Hashable, Prompt]) -> None:
        self._remember(self.answers, asked, _wholes)

    def _remember(
        self,
        known: dict[Hashable, Tensor],
        asked: Mapping[Hashable, Prompt],
        say: Callable[[Backbone, Sequence[Prompt]], Tensor],
    ) -> None:
        """Adds to `known` what is not in it; where that would be too much, it begins anew."""
        new = {k: p for k, p in asked.items() if k not in known}
        if len(known) + len(new) > KEPT:
            known.clear()
            new = dict(asked)
        # prompts about one picture together: the vision tower reads it once per batch
        order = sorted(new.items(), key=lambda kp: (_shown(kp[1]), len(kp[1].text)))
        keys, prompts = [k for k, _ in order], [p for _, p in order]
        chunks = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
        said = self.work.mapped(self.backbone, say, chunks)
        known.update(zip(keys, (row for _, rows in said for row in rows), strict=True))


@torch.no_grad()
def _roots(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    """[B, m + 1] roots of the bucketed next-token distributions; the last bucket is empty."""
    logits = backbone.logits(backbone.encode(prompts))[:, 0].float().cpu()
    share = logits.softmax(-1)
    buckets = torch.arange(share.shape[-1])
    if len(buckets) > BUCKETS:
        buckets = buckets * PRIME % BUCKETS
    counts = torch.zeros(len(share), BUCKETS + 1)
    return counts.index_add(1, buckets, share).sqrt()


@torch.no_grad()
def _wholes(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    """[B, m + 1] the greedy answers as unit vectors: equal answers agree, others do not."""
    said = backbone.generate(backbone.encode(prompts), [WORDS] * len(prompts))
    numbers = torch.tensor([number(*map(str, s.ids)) % BUCKETS for s in said])
    return torch.nn.functional.one_hot(numbers, BUCKETS + 1).float()


def _shown(prompt: Prompt) -> tuple[str, ...]:
    return tuple(i.sha256 or i.uri for i in prompt.images)
