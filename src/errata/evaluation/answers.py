"""Asks a model probes in batches, one probe per row.

Prompt and reference run once, in one prefill. It gives the log-probabilities of the reference under
teacher forcing. It also gives the greedy answer, as long as that equals the reference; rows that
differ continue from the KV cache of the prompt. Batches depend only on the requests and their
order, so that a repeated run gives equal bytes. Probes of drawn kinds are drawn (see `pictures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from errata.core.errors import BadEdit, BadImage, TooLong
from errata.core.files import versions
from errata.core.formats.validation import whole_number
from errata.core.hooks.hook import flat_on_row
from errata.core.measure.protocol import Ask
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.model.batch import Generated
from errata.core.model.budget import in_parts
from errata.core.model.generation import ImageGenerator, image_generator
from errata.core.patch import Patch
from errata.core.text import lines_of
from errata.core.types import Answer, Probe, Prompt, Scored, digest, to_json
from errata.evaluation.pictures import PictureStore, live_digest

BATCH = 64
EXTRA = 8  # tokens that an answer may be longer than its reference
TOP = 10

#: answers to locality probes given before any edit, by (case, probe id)
Before = Mapping[tuple[str, str], Answer]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A question, and the row (lane) whose patch is live while it is asked."""

    ask: Ask
    row: int = 0


def unedited(backbone: Backbone) -> list[Any]:
    """What the answers of the unedited model depend on besides the questions: a cache key."""
    return [
        versions(),
        [BATCH, EXTRA, "lines", "pictures"],
        backbone.fingerprint(),
        str(backbone.dtype),
        backbone.device_of("").type,
        backbone.style,
        *drawing_settings(backbone),
    ]


def drawing_settings(backbone: Backbone) -> list[dict[str, Any]]:
    """What its pictures depend on besides the model: settings, and who draws; or nothing."""
    if not isinstance(backbone, ImageGenerator):
        return []
    given = {**backbone.drawing, **backbone.drawn_by}
    return [given] if given else []


def ask_all(
    backbone: Backbone,
    requests: Sequence[PromptRequest],
    *,
    step: int,
    before: Before | None = None,
    legacy: bool = False,
    forced: bool = False,
    store: PictureStore | None = None,
    batch_size: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers in the order of `requests`.

    before: if given, each locality probe's before-answer is scored as well (`Answer.own`). forced:
    nothing is generated, the answers have scores under teacher forcing alone. store: where pictures
    are saved; needed if a probe is drawn.
    """

    def text(part: Sequence[PromptRequest]) -> list[Answer]:
        return in_parts(
            part,
            lambda few: _text_answers(backbone, few, step, before, legacy, forced),
            f"one question to {backbone.name}",
        )

    def draw(part: Sequence[PromptRequest]) -> list[Answer]:
        assert store is not None
        return _drawn_answers(backbone, part, step, store)

    answers: dict[int, Answer] = {}
    for drawn, size, ask in ((False, batch_size, text), (True, store.batch if store else 1, draw)):
        chosen = [i for i, r in enumerate(requests) if (r.ask.probe.kind_info.drawn) == drawn]
        order = sorted(chosen, key=lambda i: _cost(requests[i]))
        for part in _batches(order, size, lambda i: len(requests[i].ask.probe.prompt.images)):
            batch = [requests[i] for i in part]
            answers.update(zip(part, _ask_or_reason(batch, step, ask), strict=True))
            if on_batch is not None:
                on_batch(len(part))
    return [answers[i] for i in range(len(requests))]


def _batches(
    order: Sequence[int], size: int, pictures: Callable[[int], int]
) -> Iterator[Sequence[int]]:
    """At most `size` at a time, with equal numbers of pictures."""
    for _, alike in groupby(order, key=pictures):
        part = list(alike)
        yield from (part[start : start + size] for start in range(0, len(part), size))


def _cost(request: PromptRequest) -> tuple[int, int, int, int, str, int]:
    """Sort key: equal shapes together, questions about one picture next to each other.

    A picture is shared by the questions of one patch, and costs more than all their words.
    """
    probe, row = request.ask.probe, request.row
    images, length = probe.prompt.images, len(probe.prompt.text) // 8
    if images:
        return len(images), probe.cap, 0, row, images[0].uri, length
    return 0, probe.cap, length, row, "", 0


def _ask_or_reason(
    requests: Sequence[PromptRequest],
    step: int,
    ask: Callable[[Sequence[PromptRequest]], list[Answer]],
) -> list[Answer]:
    """As `ask`; a question that cannot be asked becomes an unscored answer with the reason."""
    try:
        return ask(requests)
    except (TooLong, BadImage, BadEdit) as e:
        if len(requests) == 1:
            return [unscored(requests[0].ask, step, str(e))]
        return [answer for one in requests for answer in _ask_or_reason([one], step, ask)]


def _drawn_answers(
    backbone: Backbone, requests: Sequence[PromptRequest], step: int, store: PictureStore
) -> list[Answer]:
    asks = [r.ask for r in requests]
    prompts = [a.probe.prompt for a in asks]
    rows = [r.row for r in requests]
    live = live_digest(backbone.hooks.stack)
    names = [p for a in asks for p in store.paths(a)]
    key = digest([*unedited(backbone), live, [to_json(p) for p in prompts], rows, names])
    paths = store.begun(key, asks)
    if paths is None:
        pictures = image_generator(backbone).draw(prompts, store.seeds, rows=torch.tensor(rows))
        paths = [store.keep(a, drawn) for a, drawn in zip(asks, pictures, strict=True)]
        store.note(key, names)
    return [
        Answer(case=a.case, probe=a.probe.id, step=step, tag=a.tag, images=images)
        for a, images in zip(asks, paths, strict=True)
    ]


def unscored(ask: Ask, step: int, reason: str) -> Answer:
    """Stands for an answer that the model could not give; counted and shown, never a zero."""
    return Answer(
        case=ask.case,
        probe=ask.probe.id,
        step=step,
        tag=ask.tag,
        stopped=False,
        notes={"unscored": reason},
    )


def _text_answers(
    backbone: Backbone,
    requests: Sequence[PromptRequest],
    step: int,
    before: Before | None,
    legacy: bool,
    forced: bool,
) -> list[Answer]:
    probes = [r.ask.probe for r in requests]
    rows = torch.tensor([r.row for r in requests])
    # a free text has no reference
    references = ["" if p.cap else p.reference for p in probes]
    batch = backbone.encode([p.prompt for p in probes], references, rows=rows.tolist())
    caps = [p.cap or len(t) + EXTRA for p, t in zip(probes, batch.targets, strict=True)]
    earlier = [_before_ids(r, before) for r in requests]
    size = backbone.bytes_to_ask(batch, 0 if forced else max(caps), max(map(len, earlier)))
    fit = backbone.fitting(size, len(requests))
    if fit < len(requests):
        parts = [requests[i : i + fit] for i in range(0, len(requests), fit)]
        return [a for p in parts for a in _text_answers(backbone, p, step, before, legacy, forced)]
    # an answer that equals the reference is scored with it
    other = [e if e != t else () for e, t in zip(earlier, batch.targets, strict=True)]
    contrasts = _contrast_ids(backbone, requests)
    nothing = [Scored((), (), ())] * len(requests)
    generated = [Generated((), True)] * len(requests)
    with backbone.ask(batch, rows=rows, answers_only=not legacy) as q:
        references_scored = q.scores()
        if not forced:
            generated = q.greedy(
                caps,
                free=[p.cap > 0 for p in probes],
                lines=[lines_of(p.reference) if p.kind_info.expects_target else 1 for p in probes],
            )
        earlier_scored = q.score(other) if any(other) else nothing
        contrasted = q.score(contrasts) if any(contrasts) else nothing
        top = q.top(TOP) if legacy else [None] * len(requests)
    return [
        Answer(
            case=r.ask.case,
            probe=r.ask.probe.id,
            step=step,
            tag=r.ask.tag,
            text=backbone.decode(g.ids),
            ids=g.ids,
            stopped=g.stopped,
            reference=s if s.ids else None,
            own=e if e.ids else s if said and said == s.ids else None,
            top=t,
            contrast=c if c.ids else None,
        )
        for r, g, s, e, said, c, t in zip(
            requests,
            generated,
            references_scored,
            earlier_scored,
            earlier,
            contrasted,
            top,
            strict=True,
        )
    ]


def _contrast_ids(backbone: Backbone, requests: Sequence[PromptRequest]) -> list[tuple[int, ...]]:
    """Ids of the answer that competes with each reference, as a target; () where there is none."""
    probes = [r.ask.probe for r in requests]
    if not any(p.contrast for p in probes):
        return [()] * len(probes)
    rows = [r.row for r in requests]
    batch = backbone.encode([p.prompt for p in probes], [p.contrast for p in probes], rows=rows)
    return [tuple(t) if p.contrast else () for p, t in zip(probes, batch.targets, strict=True)]


def _before_ids(request: PromptRequest, before: Before | None) -> tuple[int, ...]:
    """Ids of the answer that a locality probe had before any edit; () for other probes."""
    ask = request.ask
    if before is None or not ask.probe.kind_info.keeps_answer:
        return ()
    case = "panel" if ask.case.startswith("panel/") else ask.case
    return before[case, ask.probe.id].ids


def ask_prompts(
    backbone: Backbone,
    prompts: Prompt | str | Sequence[Prompt | str],
    *,
    cap: int = 32,
    lines: int | None = None,
) -> list[Answer]:
    """Greedy answers of at most `cap` tokens, with the patches that are live.

    prompts: also one prompt, and a text for a prompt without an image. Raises BadEdit for others.
    lines: after how many lines an answer ends, blank ones not counted; 0: at an end token only. By
    default 0 with the chat template, otherwise 1, or as many as the target has in a live patch
    that edits this prompt.
    """
    check_backbone(backbone)
    asked = prompts_of(prompts)
    cap = whole_number("cap", cap, least=1)
    lines = None if lines is None else whole_number("lines", lines, least=0)
    texts: list[tuple[str, Generated]] = []
    for start in range(0, len(asked), BATCH):
        texts += in_parts(
            asked[start : start + BATCH],
            lambda few: _said(backbone, few, cap, lines),
            f"one question to {backbone.name}",
        )
    return [
        Answer(case="", probe=str(i), text=text, ids=g.ids, stopped=g.stopped)
        for i, (text, g) in enumerate(texts)
    ]


def _said(
    backbone: Backbone, prompts: Sequence[Prompt], cap: int, lines: int | None
) -> list[tuple[str, Generated]]:
    """The answers as texts and tokens."""
    batch = backbone.encode(prompts, rows=[0] * len(prompts))
    fit = backbone.fitting(backbone.bytes_to_ask(batch, cap), len(prompts))
    if fit < len(prompts):
        parts = [prompts[i : i + fit] for i in range(0, len(prompts), fit)]
        return [said for part in parts for said in _said(backbone, part, cap, lines)]
    wanted = [answer_lines(backbone, p) if lines is None else lines for p in prompts]
    rows = torch.zeros(len(prompts), dtype=torch.long)
    with backbone.ask(batch, rows=rows, answers_only=True) as q:
        generated = q.greedy([cap] * len(prompts), free=[n == 0 for n in wanted], lines=wanted)
    return [(backbone.decode(g.ids), g) for g in generated]


def prompts_of(prompts: Any) -> list[Prompt]:
    """Prompts from prompts and texts, or from one of them. Raises BadEdit."""
    one = isinstance(prompts, (Prompt, str, bytes, Mapping)) or not isinstance(prompts, Iterable)
    return [Prompt.from_any(p) for p in ([prompts] if one else prompts)]


def answer_lines(backbone: Backbone, prompt: Prompt, row: int = 0) -> int:
    """After how many lines the answer to a prompt ends, with the patches that are live on its row.

    0: at an end token only.
    """
    if backbone.style == "chat":
        return 0
    live = [h for h in flat_on_row(backbone.hooks.stack, row) if isinstance(h, Patch)]
    targets = [e.target for p in live for e in p.edits if e.prompt.text == prompt.text]
    return max(map(lines_of, targets), default=1)


def too_long(backbone: Backbone, probe: Probe) -> str | None:
    """Why a probe cannot be asked, or None. Its longest answer and an end token must fit."""
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
