"""Context templates: short texts in front of an edit's prompt, and the token that is looked up.

Keys and values are taken over several templates, so that they belong to the fact and not to one
sentence. A template is the text that is put in front; the first one is always "", the bare prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.files import read_text
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.types import Edit, Prompt

STARTERS = ("The", "Therefore", "Because", "I", "You")
TOP = 5  # each token is drawn from the 5 likeliest

#: what was sampled from a model, by its fingerprint, the lengths and the state of the generator
_sampled: WeakKeyDictionary[Backbone, dict[tuple[object, ...], list[str]]] = WeakKeyDictionary()


def context_templates(
    backbone: Backbone, source: str, lengths: Sequence[int], rng: torch.Generator
) -> tuple[str, ...]:
    """The templates, "" first.

    source: `sampled` (the unedited model continues every starter, once per length; a length counts
    tokens with the starter), `none`, or a text file with one template a line. Raises BadSpec.
    Sampled templates are kept with the model, until its weights change.
    """
    if source == "none":
        return ("",)
    if source == "sampled":
        drawn = (backbone.fingerprint(), *lengths, rng.get_state().numpy().tobytes())
        kept = _sampled.setdefault(backbone, {})
        if drawn not in kept:
            kept[drawn] = sample_templates(backbone, lengths, rng)
        lines = kept[drawn]
    else:
        try:
            lines = read_text(Path(source), BadSpec).split("\n")
        except BadSpec as e:
            raise BadSpec(
                f"cannot read context_templates={source[:100]}: {e} Write `sampled`, `none`, or a "
                "text file with one template a line."
            ) from None
    return ("", *(f"{x.strip().rstrip('.')}. " for x in lines if x.strip()))


@torch.no_grad()
def sample_templates(backbone: Backbone, lengths: Sequence[int], rng: torch.Generator) -> list[str]:
    """Continuations of STARTERS by the unedited model, each token drawn from its TOP likeliest."""
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
                for tokens, token in zip(ids, chosen[:, 0].tolist(), strict=True):
                    tokens.append(token)
                logits = q.feed(chosen)[:, -1]
        texts = [
            backbone.decode([*backbone.answer_ids(s, Prompt.of("")), *tokens[: n - 1]])
            for (s, n), tokens in zip(starts, ids, strict=True)
        ]
    return [(text.splitlines() or [""])[0] for text in texts]


def with_template(prompt: Prompt, template: str) -> Prompt:
    """The prompt with the template in front of its first text; images stay where they are."""
    if not template:
        return prompt
    segments = list(prompt.segments)
    first = next(i for i, s in enumerate(segments) if isinstance(s, str))
    segments[first] = template + str(segments[first])
    return Prompt(tuple(segments))


def lookup_columns(backbone: Backbone, batch: Batch, spans: Sequence[str | None]) -> Tensor:
    """[B] the column of each row's lookup token: last of its span, or of its prompt (None)."""
    columns = [
        int(batch.lengths[b]) - 1 if span is None else backbone.last_column(batch.prompts[b], span)
        for b, span in enumerate(spans)
    ]
    return torch.tensor(columns, device=batch.ids.device)


def lookup_span(edit: Edit, token: str) -> str | None:
    """The text whose last token is looked up: the subject; None for the end of the prompt.

    token: the setting, `subject` or `last_prompt`. An edit without a subject gives None too.
    """
    return (edit.subject or None) if token == "subject" else None
