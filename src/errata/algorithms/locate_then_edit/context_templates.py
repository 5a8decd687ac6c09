"""What stands before the prompt of an edit while it is searched, and where its subject then is.

A key or value found behind several beginnings is that of the fact, not of one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.types import Edit, Prompt

STARTERS = ("The", "Therefore", "Because", "I", "You")
TOP = 5  # likeliest tokens that one is drawn from


def contexts(
    backbone: Backbone, source: str, lengths: Sequence[int], rng: torch.Generator
) -> tuple[str, ...]:
    """The beginnings, the bare one ("") first.

    `source`: `sampled` from the unedited model (behind each of STARTERS, one per length, which
    counts tokens and the starter), `none`, or a file with one a line. Raises BadSpec.
    """
    if source == "none":
        return ("",)
    if source == "sampled":
        lines = sampled(backbone, lengths, rng)
    else:
        try:
            lines = Path(source).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise BadSpec(
                f"cannot read prefixes={source}: {e}. Write `sampled`, `none`, or a text file with "
                "one beginning a line."
            ) from None
    return ("", *(f"{x.strip().rstrip('.')}. " for x in lines if x.strip()))


@torch.no_grad()
def sampled(backbone: Backbone, lengths: Sequence[int], rng: torch.Generator) -> list[str]:
    """Continuations of STARTERS by the unedited model, each token one of its TOP likeliest."""
    starts = [(s, n) for n in lengths for s in STARTERS]
    ids: list[list[int]] = [[] for _ in starts]
    with backbone.unedited():
        batch = backbone.encode([Prompt.of(s) for s, _ in starts])
        with backbone.ask(batch) as q:
            logits = q.logits[:, 0]
            for _ in range(max(lengths, default=1) - 1):
                best = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
                odds = best.values.softmax(-1).cpu()
                pick = torch.multinomial(odds, 1, generator=rng).to(best.indices.device)
                chosen = best.indices.gather(1, pick)
                for own, token in zip(ids, chosen[:, 0].tolist(), strict=True):
                    own.append(token)
                logits = q.feed(chosen)[:, -1]
        said = [
            backbone.decode([*backbone.answer_ids(s, Prompt.of("")), *own[: n - 1]])
            for (s, n), own in zip(starts, ids, strict=True)
        ]
    return [(text.splitlines() or [""])[0] for text in said]


def prefixed(prompt: Prompt, prefix: str) -> Prompt:
    """The prompt with a beginning in front of its first text; images stay where they are."""
    if not prefix:
        return prompt
    segments = list(prompt.segments)
    first = next(i for i, s in enumerate(segments) if isinstance(s, str))
    segments[first] = prefix + str(segments[first])
    return Prompt(tuple(segments))


def columns(backbone: Backbone, batch: Batch, spans: Sequence[str | None]) -> Tensor:
    """[B] where each row is looked up: the last token of its span, or of its prompt (None)."""
    found = [
        int(batch.lengths[b]) - 1 if span is None else backbone.last_column(batch.prompts[b], span)
        for b, span in enumerate(spans)
    ]
    return torch.tensor(found, device=batch.ids.device)


def span_of(edit: Edit, token: str) -> str | None:
    """What is looked up: the subject where it is wanted and the edit has one."""
    return (edit.subject or None) if token == "subject" else None
