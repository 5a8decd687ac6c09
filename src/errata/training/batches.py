"""Training batches with activations cached below the first trained block.

A training case gives a pool of examples: the edit itself (`reliability`), questions that must give
the new answer (`generality`) and questions whose answer must stay (`locality`). A pool is always
entered as one batch, so that its activations do not depend on the order of the training, and a
resumed training sees the same bits. A step then puts examples of several pools into one batch.

Shapes: B examples of a step, M target tokens, V vocabulary, t tokens and m target tokens of one
example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixRow, PrefixState
from errata.core.types import Case, Prompt
from errata.training.optimise import target_loss

Role = Literal["reliability", "generality", "locality"]
ROLES: tuple[Role, ...] = ("reliability", "generality", "locality")


@dataclass(frozen=True)
class TrainExample:
    """One question of a training case, with the answer that is teacher forced.

    before: for a locality example whose prompt the editor rewrites, the prompt that the unedited
    model is asked.
    """

    role: Role
    prompt: Prompt
    target: str
    kind: str = ""
    before: Prompt | None = None


@dataclass(frozen=True, eq=False)
class CachedExample:
    """An example with what stays the same all training long.

    vision [t]: which of its tokens are image tokens. target: its token ids. prefix: the activations
    that enter the lowest trained block, None where the model cannot be entered there. unedited
    [m, V]: the unedited model's logits of a locality example.
    """

    example: TrainExample
    vision: Tensor
    target: tuple[int, ...]
    prefix: PrefixRow | None = None
    unedited: Tensor | None = None

    @property
    def bytes(self) -> int:
        tensors = [self.vision] if self.unedited is None else [self.vision, self.unedited]
        own = sum(t.numel() * t.element_size() for t in tensors)
        return own + (self.prefix.bytes if self.prefix is not None else 0)


class ExamplePool:
    """The examples of training cases, made when first needed, kept up to `limit` bytes.

    floor: the lowest trained block, None where the model cannot be entered at a block. eos: targets
    end with the end token.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples_of: Callable[[Case], Sequence[TrainExample]],
        *,
        floor: int | None,
        eos: bool,
        limit: int,
    ) -> None:
        self.backbone, self.examples_of = backbone, examples_of
        self.floor, self.eos, self.limit = floor, eos, limit
        self.bytes = 0
        self._kept: dict[tuple[str, str], tuple[CachedExample, ...]] = {}

    def of(self, case: Case) -> tuple[CachedExample, ...]:
        """The pool of a case; it is kept while there is room."""
        key = (case.task, case.id)
        if key in self._kept:
            return self._kept[key]
        pool = self._make(list(self.examples_of(case)))
        size = sum(e.bytes for e in pool)
        if self.bytes + size <= self.limit:
            self._kept[key] = pool
            self.bytes += size
        return pool

    @torch.no_grad()
    def _make(self, examples: list[TrainExample]) -> tuple[CachedExample, ...]:
        bb = self.backbone
        assert not bb.hooks.stack, "training starts from the unedited model"
        batch = _encoded(bb, examples, self.eos)
        state: Batch | PrefixState = batch
        prefixes: list[PrefixRow] | None = None
        if self.floor is not None and self.floor > 0:
            state = bb.enter(batch, self.floor)
            prefixes = bb.split(state)
        sizes = batch.mask.sum(1).tolist()
        pool = [
            CachedExample(
                example, batch.vision[b, : int(sizes[b])].clone(), batch.targets[b],
                prefixes[b] if prefixes is not None else None,
            )
            for b, example in enumerate(examples)
        ]  # fmt: skip
        locality = [b for b, e in enumerate(examples) if e.role == "locality"]
        if not locality:
            return tuple(pool)
        if prefixes is not None and all(e.before is None for e in examples):
            asked: Batch | PrefixState = bb.concat(
                [prefixes[b] for b in locality], torch.arange(len(locality))
            )
        else:
            rows = [examples[b] for b in locality]
            rows = [replace(e, prompt=e.before or e.prompt) for e in rows]
            asked = _encoded(bb, rows, self.eos)
        logits = bb.logits(asked)
        for n, b in enumerate(locality):
            unedited = logits[n, : len(pool[b].target)].clone()
            pool[b] = replace(pool[b], unedited=unedited)
        return tuple(pool)


@dataclass(eq=False)
class TrainBatch:
    """The batch of a training step: examples of several cases, the edit of each case first.

    of_case [B]: the index in `cases` of each example; it is also the `rows` of a patch with one row
    per case. rng: depends on seed and step alone. floor, eos: see `ExamplePool`.
    """

    backbone: Backbone
    cases: tuple[Case, ...]
    examples: tuple[CachedExample, ...]
    of_case: Tensor
    floor: int | None
    eos: bool
    rng: torch.Generator

    @cached_property
    def state(self) -> Batch | PrefixState:
        """All examples, at the block `floor`; as a batch where `floor` is None or 0."""
        return self.part(range(len(self.examples)))

    @cached_property
    def edits(self) -> Batch | PrefixState:
        """The edits alone, one row per case, in the order of `cases`."""
        first = [self.of_case.tolist().index(c) for c in range(len(self.cases))]
        assert all(self.examples[i].example.role == "reliability" for i in first)
        return self.part(first)

    def index(self, *roles: Role) -> list[int]:
        """The examples with these roles."""
        return [i for i, e in enumerate(self.examples) if e.example.role in roles]

    def part(self, index: Sequence[int]) -> Batch | PrefixState:
        """The examples at `index`, padded to the longest of them."""
        chosen, owners = [self.examples[i] for i in index], self.of_case[list(index)]
        prefixes = [e.prefix for e in chosen if e.prefix is not None]
        if len(prefixes) == len(chosen):
            return self.backbone.concat(prefixes, owners)
        batch = _encoded(self.backbone, [e.example for e in chosen], self.eos)
        if self.floor is None or self.floor <= 0:
            return batch
        with self.backbone.unedited():  # the state is asked with the patch and without it
            return self.backbone.enter(batch, self.floor, rows=owners)

    def logits(self, what: Batch | PrefixState | None = None) -> Tensor:
        """[B, 1 + M, V] of all examples (or of `edits`); each meets the patch row of its case."""
        state = self.state if what is None else what
        if isinstance(state, PrefixState):
            return self.backbone.logits(state)
        assert what is None or what is self.edits
        everyone = torch.arange(len(self.cases), device=self.of_case.device)
        return self.backbone.logits(state, rows=self.of_case if what is None else everyone)

    def losses(self, logits: Tensor, mean: Literal["rows", "tokens"] = "rows") -> dict[str, Tensor]:
        """The losses from logits [B, >= M, V] of all examples; a role without any is left out.

        `reliability` and `generality`: mean negative log-likelihood of the targets; `locality`: KL
        from the unedited model's distribution at the answer's positions. `reliability_right`,
        `generality_right`, `locality_kept`: share of examples with every token right, or unchanged;
        not trained on. mean: over examples, each a mean over its tokens (`rows`), or over all
        tokens of a role (`tokens`), where long targets count more.
        """
        batch = self.state if isinstance(self.state, Batch) else self.state.batch
        nll_B, right_B = target_loss(logits, batch)
        out: dict[str, Tensor] = {}
        for role in ROLES[:2]:
            index = self.index(role)
            if index:
                out[role] = _mean(nll_B[index], [self.examples[i] for i in index], mean)
                out[f"{role}_right"] = right_B[index].float().mean()
        index = self.index("locality")
        if index:
            kl_B, kept = self._kept(logits, index)
            out["locality"] = _mean(kl_B, [self.examples[i] for i in index], mean)
            out["locality_kept"] = kept
        return out

    def _kept(self, logits: Tensor, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of locality examples: KL(unedited || edited) of each, a mean over its tokens, and the
        share whose argmax stays.
        """
        kl, kept = [], []
        for i in index:
            unedited = self.examples[i].unedited
            assert unedited is not None
            unedited = unedited.to(logits.device)
            edited = logits[i, : unedited.shape[0]]
            p = unedited.log_softmax(-1)
            kl.append((p.exp() * (p - edited.log_softmax(-1))).sum(-1).mean())
            kept.append((edited.argmax(-1) == unedited.argmax(-1)).all().float())
        return torch.stack(kl), torch.stack(kept).mean()


def _mean(
    values_B: Tensor, examples: Sequence[CachedExample], mean: Literal["rows", "tokens"]
) -> Tensor:
    """The mean over examples of means over their tokens, or the mean over all their tokens."""
    if mean == "rows":
        return values_B.mean()
    tokens_B = values_B.new_tensor([float(len(e.target)) for e in examples])
    return (values_B * tokens_B).sum() / tokens_B.sum()


def _encoded(backbone: Backbone, examples: Sequence[TrainExample], eos: bool) -> Batch:
    prompts, targets = [e.prompt for e in examples], [e.target for e in examples]
    return backbone.encode(prompts, targets, eos=eos, rows=[0] * len(examples))
