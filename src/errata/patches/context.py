"""Context: rewrites the prompt, putting facts and demonstrations in front of it (IKE, LTE).

Nothing inside the model changes. The facts are retrieved with the prompt alone, with its text or
with text and image, before there is an answer. If the result is too long, the least similar
demonstrations are dropped first, and counted.

Two styles: `fact` (IKE; the facts as text after the question's image) and `update` (LTE; each fact
with its own image, before the question and its image).

Tensors: `vectors` [F, d], one unit vector per fact's question, from the encoder named in the
settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from errata.core.errors import TooLong
from errata.core.patch import Patch, PromptEncoder, inherit, same_prompt
from errata.core.types import Edit, Image, Prompt, Segment, from_json
from errata.io.images import embedded
from errata.networks.embedder import embed, embed_with_images


@dataclass(frozen=True, slots=True)
class Fact:
    """One edited fact as text, with its demonstrations, the most similar first.

    `images` belong to the question and are shown by the style `update` only.
    """

    question: str
    answer: str
    demonstrations: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How facts become a prompt. `threshold` is used by scope `retrieved` only.

    by_image: facts are retrieved by text and image, not by text alone.
    """

    scope: Literal["always", "retrieved"] = "always"
    threshold: float = 0.7
    facts: int = 4
    encoder: str = "backbone"
    reserve: int = 32
    style: Literal["fact", "update"] = "fact"
    by_image: bool = False


class Context(Patch):
    """Facts and demonstrations in front of the prompt.

    `dropped` counts the demonstrations that did not fit, over all rewrites so far.
    """

    one_when_live = True
    vectors: Tensor

    def __init__(self, facts: Sequence[Fact], layout: ContextSettings, vectors: Tensor) -> None:
        super().__init__()
        self.facts, self.layout = tuple(facts), layout
        self.register_buffer("vectors", vectors.detach().float())
        self.dropped = 0
        self._again: tuple[tuple[Edit, ...], set[int]] | None = None

    @property
    def rewrites(self) -> bool:
        return True

    @property
    def pictures(self) -> tuple[Image, ...]:
        if self.layout.style != "update":
            return ()
        return tuple(dict.fromkeys(image for f in self.facts for image in f.images))

    def rewrite(self, prompt: Prompt, model: PromptEncoder, row: int = 0) -> Prompt:
        order = self._retrieved(prompt, model)
        if not order:
            return prompt
        facts = [self.facts[i] for i in reversed(order)]
        demonstrations = list(self.facts[order[0]].demonstrations)
        while True:
            rewritten = compose(prompt, facts, demonstrations, self.layout.style)
            if fits(rewritten, model, self.layout.reserve):
                return rewritten
            if not demonstrations:
                raise TooLong(
                    f"the facts alone do not fit into the {model.context} tokens of "
                    f"{model.name}. Show fewer of them: --set facts=1."
                )
            demonstrations.pop()
            self.dropped += 1

    def _retrieved(self, prompt: Prompt, model: PromptEncoder) -> list[int]:
        """Indices of the facts to show, most similar first; none if the prompt is out of scope."""
        layout, replaced = self.layout, self._replaced()
        if layout.scope == "always" and len(self.facts) - len(replaced) <= 1:
            return [i for i in range(len(self.facts)) if i not in replaced]
        query = vectors_of([prompt], layout, model)[0]
        near = self.vectors @ query.to(self.vectors.device)
        # of equally similar facts the latest first: an edit of the same prompt replaces the earlier
        rank = torch.argsort((near.flip(0) * 1e5).round(), descending=True, stable=True)
        order = [len(self.facts) - 1 - i for i in rank.tolist()]
        order = [i for i in order if i not in replaced][: layout.facts]
        if layout.scope == "retrieved":
            order = [i for i in order if float(near[i]) >= layout.threshold]
        return order

    def _replaced(self) -> set[int]:
        """Facts whose question is edited again by a later fact."""
        if self._again is None or self._again[0] is not self.edits:
            self._again = self.edits, self._edited_again()
        return self._again[1]

    def _edited_again(self) -> set[int]:
        if len(self.edits) != len(self.facts):
            return set()
        later: dict[Any, list[Prompt]] = {}
        again = set()
        for i in reversed(range(len(self.edits))):
            prompt = self.edits[i].prompt
            if any(same_prompt(prompt, p) for key in self.asked[i] for p in later.get(key, ())):
                again.add(i)
            for key in self.asked[i]:
                later.setdefault(key, []).append(prompt)
        return again

    def keep(self, index: Sequence[int]) -> Self | None:
        if len(self.edits) != len(self.facts):
            return None
        facts = [self.facts[i] for i in index]
        part = type(self)(facts, self.layout, self.vectors[list(index)])
        return part.with_header(self.header, [self.edits[i] for i in index])

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One memory with all facts: the prompt is rewritten once."""
        first = patches[0]
        if any(p.layout != first.layout for p in patches):
            return None
        facts = [f for p in patches for f in p.facts]
        one = cls(facts, first.layout, torch.cat([p.vectors for p in patches]))
        one.dropped = sum(p.dropped for p in patches)
        return inherit(one, patches)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The images that it shows are packed with it: it is used where their files are not."""
        facts = self.facts
        if self.pictures:
            facts = tuple(replace(f, images=tuple(map(embedded, f.images))) for f in facts)
        return {"facts": [asdict(f) for f in facts], "layout": asdict(self.layout)}, {
            "vectors": self.vectors
        }

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        facts = [from_json(Fact, f) for f in settings["facts"]]
        return cls(facts, ContextSettings(**settings["layout"]), tensors["vectors"])


def vectors_of(prompts: Sequence[Prompt], layout: ContextSettings, model: PromptEncoder) -> Tensor:
    """[n, d] unit vectors of prompts, for retrieval as `layout` says."""
    if layout.by_image:
        return embed_with_images(prompts, layout.encoder, model)
    return embed([p.text for p in prompts], layout.encoder, model)


def compose(
    prompt: Prompt, facts: Sequence[Fact], demonstrations: Sequence[str], style: str
) -> Prompt:
    """The prompt after demonstrations and facts; the first demonstration is nearest to it."""
    if style == "fact":
        lines = "".join(f"New Fact: {f.question} {f.answer}\n" for f in facts)
        return prompt.with_text(
            "".join(reversed(demonstrations)) + lines + f"Prompt: {prompt.text}"
        )
    front: list[Segment] = []
    for f in facts:
        front += ["[Updated Information] ", *f.images, f"{f.question} {f.answer}\n"]
    return replace(prompt, segments=(*front, "[Query] ", *prompt.segments))


def fits(prompt: Prompt, model: PromptEncoder, reserve: int) -> bool:
    """Whether the prompt leaves `reserve` tokens of the context for an answer."""
    try:
        return model.prompt_length(prompt) + reserve <= model.context
    except TooLong:
        return False
