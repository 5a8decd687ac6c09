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
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Prompt
from errata.scopes._cases import some_of
from errata.scopes.testimony._choice import choose
from errata.scopes.testimony._fit import agreement, fit
from errata.scopes.testimony._follows import learn_follows, nearest
from errata.scopes.testimony._witness import Panel, Witness

#: settings that the state depends on
LEARNT = ("questions", "pictures", "pool", "cases", "relation_kinds")
CHOOSING = 100  # cases: the whole pool is asked about all their pictures


class TestimonyScope(PromptScope):
    """Agreement of what the unedited model says about question and edit."""

    name = "testimony"
    reach = "questions that the model itself takes for the same (tuned first, once)"
    keeps_state = True
    in_chunks = True
    __test__ = False  # no test class, whatever its name begins with

    @dataclass(frozen=True, kw_only=True)
    class Config(PromptScope.Config):
        """questions: how many questions are asked about a picture at most. pictures: how many fixed
        pictures a question is put to. pool: how many questions the choice is made from. cases:
        number of training cases. threshold: least score (a logit) of a question that belongs to an
        edit; a higher one opens less often; null = the one with which most training cases are
        right in all their questions. rise: how much higher it is in a memory of ten times as many
        edits; null = tuned in the same way. consequences: whether an edit also opens for questions
        that follow from it. relation_kinds: kinds of training questions from which it is learnt
        which relations follow from which.
        """

        questions: int = 12
        pictures: int = 4
        pool: int = 32
        cases: int = 150
        threshold: float | None = None
        rise: float | None = None
        consequences: bool = False
        relation_kinds: tuple[str, ...] = ("portability",)

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
        return {n: getattr(c, n) for n in LEARNT}

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        c = self.config
        some = some_of(cases, c.cases, seed)
        panel, curve = choose(
            backbone, some[:CHOOSING], c.questions, c.pictures, c.pool, seed, work
        )
        if panel is None:
            return None
        witness = Witness(backbone, panel, work)
        weights, found = fit(witness, some)
        tensors, follows = learn_follows(witness, some, c.pool, c.relation_kinds)
        meta = {**panel.pack(), "weights": weights, "curve": curve, **found, "follows": follows}
        return State(state_label(self.name), meta, tensors)

    def for_model(self, backbone: Backbone) -> Self:
        state = self.prepared(backbone)
        if self.config.consequences and "follows" not in state.tensors:
            raise BadSpec(
                "scope 'testimony': this state does not know which questions follow from which: "
                "its training cases have no portability questions, or errata was older. Prepare "
                "it from others, or leave consequences out."
            )
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
        asked, edits = self._parts(query), self._parts(keys)
        return torch.stack(self._scores(asked, edits, pairs=False)).amax(0)

    def way(self, query: Tensor, keys: Tensor) -> Tensor:
        if not self.config.consequences:
            return super().way(query, keys)
        scores = self._scores(self._parts(query), self._parts(keys), pairs=True)
        return torch.stack(scores).argmax(0)

    def _parts(self, vectors: Tensor) -> Tensor:
        """[n, parts, m + 1] the answers of a query or key."""
        return vectors.view(len(vectors), len(self._learnt()["each"]), -1)

    def _scores(self, asked: Tensor, edits: Tensor, *, pairs: bool) -> list[Tensor]:
        """The score of each way: as a question for the fact, and, with `consequences`, as one that
        follows from it. [B, K] each, or [B] of questions and edits one by one.

        What follows from a fact is asked of the same thing in another relation: its score is that
        of the testimonies alone, -inf where the relation does not follow.
        """
        assert self.state is not None
        weights = torch.tensor(self._learnt()["each"], device=edits.device)
        bias = float(self._learnt()["bias"])
        agreed = agreement(asked, edits, pairs=pairs)
        direct = agreed @ weights + bias
        if not self.config.consequences:
            return [direct]
        count, fixed = len(self.state.meta["questions"]), len(self.state.meta["pictures"])
        relations, follows = (
            self.state.tensors[n].to(edits.device) for n in ("relations", "follows")
        )
        edited, about = (nearest(x[:, count : count + fixed], relations) for x in (edits, asked))
        edited, about = (edited, about) if pairs else (edited[None], about[:, None])
        does = (follows[edited, about] > 0) & (edited >= 0) & (about >= 0)
        thing = agreed[..., :count] @ weights[:count] + bias
        return [direct, thing.masked_fill(~does, -torch.inf)]

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
