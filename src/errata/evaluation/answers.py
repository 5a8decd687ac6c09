"""Probes to answers: batched, one probe per row, both families of scores from one prefill.

The prompt and its reference run once; that forward gives the reference's log-probabilities and, as
far as the reference is what the model would say, the greedy answer too. Rows that say something
else go on from the cached prompt. Batches depend only on the asks and their order, so that a
repeated run gives equal bytes. Probes of drawn kinds are drawn, see `drawing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.core.backbone import Backbone
from errata.core.errors import BadEdit, BadImage, TooLong
from errata.core.patch import versions
from errata.core.protocol import Ask
from errata.core.types import Answer, Probe, Prompt, Scored
from errata.evaluation.pictures import Pictures, PictureStore

BATCH = 64
EXTRA = 8  # tokens that an answer may have beyond its reference
TOP = 10

#: answers to locality probes given before any edit, by (case, probe id)
Before = Mapping[tuple[str, str], Answer]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One ask with the row (lane) whose patch it is put to."""

    ask: Ask
    row: int = 0


def unedited(backbone: Backbone) -> list[Any]:
    """What the answers of an untouched model depend on, besides what it is asked."""
    return [
        versions(),
        [BATCH, EXTRA],
        backbone.fingerprint(),
        str(backbone.dtype),
        backbone.device_of("").type,
        getattr(backbone, "style", ""),
    ]


def ask_all(
    backbone: Backbone,
    asked: Sequence[PromptRequest],
    *,
    step: int,
    before: Before | None = None,
    legacy: bool = False,
    store: PictureStore | None = None,
    batch_size: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers in the order of `asked`.

    With `before`, each locality probe's own before-answer is scored too. `easel` is where pictures
    go; it must be there if a probe is to be drawn.
    """

    def say(part: Sequence[PromptRequest]) -> list[Answer]:
        return _batch(backbone, part, step, before, legacy)

    def draw(part: Sequence[PromptRequest]) -> list[Answer]:
        assert store is not None
        return _drawn(backbone, part, step, store)

    answers: dict[int, Answer] = {}
    for drawn, size, put in ((False, batch_size, say), (True, store.batch if store else 1, draw)):
        mine = [i for i, a in enumerate(asked) if (a.ask.probe.kind_info.drawn) == drawn]
        order = sorted(mine, key=lambda i: _cost(asked[i].ask.probe))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            answers.update(zip(part, _careful([asked[i] for i in part], step, put), strict=True))
            if on_batch is not None:
                on_batch(len(part))
    return [answers[i] for i in range(len(asked))]


def _cost(probe: Probe) -> tuple[int, bool, int, str]:
    """Sort key: equal shapes together, probes of one image side by side."""
    images = probe.prompt.images
    return (
        probe.cap,
        bool(images),
        len(probe.prompt.text) // 8,
        images[0].uri if images else "",
    )


def _careful(
    asked: Sequence[PromptRequest],
    step: int,
    put: Callable[[Sequence[PromptRequest]], list[Answer]],
) -> list[Answer]:
    """As `put`; a question that cannot be asked is answered by its reason, not by a crash."""
    try:
        return put(asked)
    except (TooLong, BadImage, BadEdit) as e:
        if len(asked) == 1:
            return [unscored(asked[0].ask, step, str(e))]
        return [a for one in asked for a in _careful([one], step, put)]


def _drawn(
    backbone: Backbone, asked: Sequence[PromptRequest], step: int, store: PictureStore
) -> list[Answer]:
    pictures: Pictures = backbone.draw(
        [a.ask.probe.prompt for a in asked],
        store.seeds,
        rows=torch.tensor([a.row for a in asked]),
    )
    return [
        Answer(
            case=a.ask.case,
            probe=a.ask.probe.id,
            step=step,
            tag=a.ask.tag,
            images=store.keep(a.ask, drawn),
        )
        for a, drawn in zip(asked, pictures, strict=True)
    ]


def unscored(ask: Ask, step: int, reason: str) -> Answer:
    """The place of an answer that could not be had; counted and shown, never a zero."""
    return Answer(
        case=ask.case,
        probe=ask.probe.id,
        step=step,
        tag=ask.tag,
        stopped=False,
        notes={"unscored": reason},
    )


def _batch(
    backbone: Backbone,
    asked: Sequence[PromptRequest],
    step: int,
    before: Before | None,
    legacy: bool,
) -> list[Answer]:
    probes = [a.ask.probe for a in asked]
    rows = torch.tensor([a.row for a in asked])
    # a free text has no reference to follow
    references = ["" if p.cap else p.reference for p in probes]
    batch = backbone.encode([p.prompt for p in probes], references, rows=rows.tolist())
    caps = [p.cap or len(t) + EXTRA for p, t in zip(probes, batch.targets, strict=True)]
    own = [_own_ids(a, before) for a in asked]
    with backbone.ask(batch, rows=rows) as q:
        scores = q.scores()
        said = q.greedy(caps, free=[p.cap > 0 for p in probes])
        owned = q.score(own) if before is not None and any(own) else [Scored((), (), ())] * len(own)
        top = q.top(TOP) if legacy else [None] * len(own)
    return [
        Answer(
            case=a.ask.case,
            probe=a.ask.probe.id,
            step=step,
            tag=a.ask.tag,
            text=backbone.decode(g.ids),
            ids=g.ids,
            stopped=g.stopped,
            reference=s if s.ids else None,
            own=o if o.ids else None,
            top=t,
        )
        for a, g, s, o, t in zip(asked, said, scores, owned, top, strict=True)
    ]


def _own_ids(asked: PromptRequest, before: Before | None) -> tuple[int, ...]:
    if before is None or not asked.ask.probe.kind_info.keeps_answer:
        return ()
    case = "panel" if asked.ask.case.startswith("panel/") else asked.ask.case
    return before[case, asked.ask.probe.id].ids


def ask_prompts(backbone: Backbone, prompts: Sequence[Prompt], *, cap: int = 32) -> list[Answer]:
    """Plain questions to whatever is live: greedy answers of at most `cap` tokens."""
    out: list[Answer] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        batch = backbone.encode(part, rows=[0] * len(part))
        rows = torch.zeros(len(part), dtype=torch.long)
        said = backbone.generate(batch, [cap] * len(part), rows=rows)
        out += [
            Answer(
                case="",
                probe=str(start + i),
                text=backbone.decode(g.ids),
                ids=g.ids,
                stopped=g.stopped,
            )
            for i, g in enumerate(said)
        ]
    return out


def too_long(backbone: Backbone, probe: Probe) -> str | None:
    """Why a probe cannot be asked at all, or None. Its longest answer and an end token must fit."""
    try:
        batch = backbone.encode([probe.prompt], ["" if probe.cap else probe.reference])
    except (TooLong, BadEdit) as e:
        return str(e)
    if probe.kind_info.drawn:
        return None
    need = int(batch.lengths[0]) + (probe.cap or len(batch.targets[0]) + EXTRA) + 1
    if need > backbone.context:
        return f"prompt and longest answer need {need} tokens of {backbone.context}"
    return None
