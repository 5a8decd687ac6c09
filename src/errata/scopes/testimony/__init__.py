"""Scope `testimony`: the unedited model is asked what it sees, and answers decide.

A question belongs to an edit if the unedited model says the same of both:

- of the picture: its next-token distributions to a few short questions about the question's
  picture and about the edit's picture (the testimonies) agree, so both show one thing;
- of the question: put to a few fixed pictures, both questions get the same answers, so both ask
  the same, in whatever words (the relation);
- in itself: both questions get the same answer, in its first token (the belief) and as a whole.

How far two distributions p and q agree is their Bhattacharyya coefficient, the sum of sqrt(p q): 1
for equal ones, 0 for ones with nothing in common. The score is a weighted sum of the logarithms,
no weight below 0, fitted as a logistic regression on training cases. It is the logarithm of a
product: one clear disagreement outweighs any number of agreements, as it should, since things that
are near differ in one point. A prompt without a picture agrees, in its testimony, with all others
without one.

The more edits a memory holds, the more often the best of their scores is high by chance. So the
cut rises with the logarithm of their number (`rise`). Both the cut for one edit and the rise are
those with which most training cases are right in all their questions: each case alone, and all of
them in one memory.

Which questions are asked is chosen on training cases, from all that these ask about pictures,
in as many senses as there are: one by one, the one that best tells other pictures of the edited
thing from pictures of near things (by the area under the ROC curve); as many of them as are best
on cases held out from the choice. Nobody names an attribute.

Each new picture costs one pass per question, each new wording one pass per fixed picture; what was
asked is remembered. The model's own answer costs one more, of at most 16 tokens.

Shapes: B prompts, K edits, Q questions, R fixed pictures, m buckets of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.scope import PromptScope, state_label
from errata.core.state import State
from errata.core.types import Case, Prompt
from errata.scopes._cases import some_of
from errata.scopes.testimony._choice import choose
from errata.scopes.testimony._fit import agreement, fit
from errata.scopes.testimony._witness import Panel, Witness

CHOOSING = 100  # cases: the whole pool is asked about all their pictures


class TestimonyScope(PromptScope):
    """Agreement of what the unedited model says about question and edit."""

    name = "testimony"
    reach = "questions that the model itself takes for the same (tuned first, once)"
    keeps_state = True
    __test__ = False  # no test class, whatever its name begins with

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptScope.Config):
        """questions: how many questions are asked about a picture at most. pictures: how many fixed
        pictures a question is put to. pool: how many questions the choice is made from. cases:
        number of training cases. threshold: least score (a logit) of a question that belongs to an
        edit; a higher one opens less often; null = the one with which most training cases are
        right in all their questions. rise: how much higher it is in a memory of ten times as many
        edits; null = tuned in the same way.
        """

        questions: int = 12
        pictures: int = 4
        pool: int = 32
        cases: int = 150
        threshold: float | None = None
        rise: float | None = None

    def __init__(self, state: State | None = None, **passed: Any) -> None:
        super().__init__(state, **passed)
        c = self.config
        if min(c.questions, c.pictures, c.pool, c.cases) < 1:
            raise BadSpec(
                "scope 'testimony': questions, pictures, pool and cases are at least 1 each."
            )
        if c.rise is not None and not c.rise >= 0:
            raise BadSpec(f"scope 'testimony': rise={c.rise} is a number from 0 on.")

    @property
    def uses_state(self) -> bool:
        return True

    def settings_of_state(self) -> dict[str, Any]:
        c = self.config
        return {n: getattr(c, n) for n in ("questions", "pictures", "pool", "cases")}

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        c = self.config
        some = some_of(cases, c.cases, seed)
        panel, curve = choose(backbone, some[:CHOOSING], c.questions, c.pictures, c.pool, seed)
        if panel is None:
            return None
        weights, found = fit(Witness(backbone, panel), some)
        meta = {**panel.pack(), "weights": weights, "curve": curve, **found}
        return State(state_label(self.name), meta)

    def for_model(self, backbone: Backbone) -> Self:
        self.prepared(backbone)
        return self

    def _witness(self, backbone: Backbone) -> Witness:
        assert self.state is not None
        views = self.state.views
        known = views.get("witness")
        if not isinstance(known, Witness) or known.backbone is not backbone:
            views["witness"] = Witness(backbone, Panel.unpack(self.state.meta))
        witness: Witness = views["witness"]
        return witness

    @torch.no_grad()
    def query(self, backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
        """[B, (Q + R + 2)(m + 1)] roots of the distributions, one after the other."""
        return self._witness(backbone).of(prompts).flatten(1)

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        learnt = self._learnt()
        weights = torch.tensor(learnt["each"], device=keys.device)
        asked, edits = (x.view(len(x), len(weights), -1) for x in (query, keys))
        return agreement(asked, edits) @ weights + float(learnt["bias"])

    def penalty(self, count: int) -> float:
        """How far the cut of a memory lies above the threshold."""
        rise: float | None = self.config.rise
        return float(self._learnt()["rise"] if rise is None else rise) * math.log10(count)

    def opens(self, score: Tensor) -> Tensor:
        opens: Tensor = score >= self.threshold
        return opens

    @property
    def threshold(self) -> float:
        """The least score, as set or as tuned."""
        own: float | None = self.config.threshold
        return float(self._learnt()["threshold"]) if own is None else own

    def _learnt(self) -> dict[str, Any]:
        assert self.state is not None, "a scope is used as `for_model` returns it"
        learnt: dict[str, Any] = self.state.meta["weights"]
        return learnt
