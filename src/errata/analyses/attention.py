"""Attention: how much of it image and text get, block by block.

Source: DualEdit Fig. 1 (Shi et al. 2025): the mean attention score of a visual and of a textual
token per layer, and of the three visual tokens that get most. The paper does not say who looks, nor
what becomes of the begin token, which draws much attention whatever is asked. So two tokens look,
side by side: the last of the prompt, where the answer is formed, and the last of prompt and
answer (the edit's target), which the paper's own gate reads; and the begin token stands apart.

A score is the mean over heads. `share` is what a group's tokens get together, `per token` (the
paper's score) the mean over its tokens. The three visual tokens are chosen in each question and
block by themselves.

Shapes: L blocks, B questions, T columns, Q = 2 tokens that look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.analyses._tokens import TokenGroups
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import (
    Figure,
    Findings,
    Line,
    Lines,
    Table,
    Tone,
    Value,
    ceiling,
)
from errata.core.model.batch import Batch
from errata.core.types import Case
from errata.evaluation.bootstrap import Bootstrap

LOOKS = {"prompt": "the last prompt token looks", "answer": "the answer's last token looks"}
MEASURES = {"share": "share of attention", "per_token": "mean per token"}
TONES: dict[str, Tone] = {
    "visual": "changes",
    "top visual": "wrong",
    "text": "stays",
    "begin": "soft",
    "answer": "right",
}

Scores = dict[tuple[str, str, str], dict[str, list[float]]]
"""(who looks, measure, group) -> case -> [L]."""


class AttentionAnalysis(Analysis):
    """Attention to image, text and begin token, per block."""

    name = "attention"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """top: how many of the most attended image tokens are shown apart."""

        top: int = 3

    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without a question about an image, BadBackbone as `attention` does."""
        if self.config.top < 1:
            raise BadSpec(f"top={self.config.top} image tokens cannot be shown. Give 1 or more.")
        cases = [c for c in subject.cases if c.edit.prompt.images and c.edit.target.strip()]
        if not cases:
            raise BadSpec("attention needs questions about images. Name a --benchmark with some.")
        scores: Scores = {}
        for done, batch, part in _batches(subject, cases):
            for key, values in measured(subject, batch, self.config.top).items():
                found = scores.setdefault(key, {})
                found.update(zip((c.id for c in part), values.tolist(), strict=True))
            subject.progress("reading attention", done, len(cases))
        told = Told(scores, Bootstrap([c.id for c in cases]), self.config.top)
        where = f"{subject.backbone.name}, {subject.benchmark}: {len(cases)} questions. "
        return Findings(
            (told.figure(where),),
            (told.table(),),
            {"cases": len(cases), "peaks": told.peaks()},
            (*told.lines(), *first_look(len(cases), "questions")),
        )


def _batches(
    subject: Subject, cases: Sequence[Case]
) -> Iterator[tuple[int, Batch, Sequence[Case]]]:
    for start in range(0, len(cases), subject.rows):
        part = cases[start : start + subject.rows]
        batch = subject.backbone.encode(
            [c.edit.prompt for c in part], [c.edit.target for c in part]
        )
        yield start + len(part), batch, part


def measured(subject: Subject, batch: Batch, top: int) -> dict[tuple[str, str, str], Tensor]:
    """(who looks, measure, group) -> [B, L]."""
    columns_BQ = torch.stack([batch.lengths, batch.mask.sum(1)], dim=1) - 1
    weights_LBQT = subject.backbone.attention(batch, columns_BQ).mean(2)
    modality = TokenGroups.of(batch)
    groups = {
        "visual": modality.visual,
        "text": modality.text | modality.last,
        "begin": modality.begin,
        "answer": modality.answer,
    }
    out: dict[tuple[str, str, str], Tensor] = {}
    for q, who in enumerate(LOOKS):
        w_BLT = weights_LBQT[:, :, q].transpose(0, 1)
        for group, mask in groups.items():
            if group == "answer" and who == "prompt":
                continue
            mask_B1T = mask.cpu()[:, None]
            share_BL = (w_BLT * mask_B1T).sum(-1)
            out[who, "share", group] = share_BL
            out[who, "per_token", group] = share_BL / mask_B1T.sum(-1).clamp(min=1)
        visual_BLT = w_BLT.masked_fill(~modality.visual.cpu()[:, None], 0.0)
        count = min(top, int(modality.visual.sum(1).min()))
        most_BLk = visual_BLT.topk(count, dim=-1).values
        out[who, "share", "top visual"] = most_BLk.sum(-1)
        out[who, "per_token", "top visual"] = most_BLk.mean(-1)
    return out


class Told:
    """What can be said of the scores."""

    def __init__(self, scores: Scores, boot: Bootstrap, top: int) -> None:
        self.scores, self.boot, self.top = scores, boot, top
        self.depth = len(next(iter(next(iter(scores.values())).values())))

    def label(self, group: str) -> str:
        return f"visual, top {self.top}" if group == "top visual" else group

    def mean(self, key: tuple[str, str, str], layer: int) -> Value:
        units = {case: [row[layer]] for case, row in self.scores[key].items()}
        found = self.boot.mean([units], [1.0])
        assert found is not None
        return Value(found.value, *(found.ci95 or (None, None)))

    def peaks(self) -> dict[str, Any]:
        """Who looks -> measure -> group -> its block, and the share of resamples that agree."""
        out: dict[str, Any] = {}
        for (who, measure, group), rows in self.scores.items():
            block, agree = self.boot.peak(rows)
            found: dict[str, Any] = out.setdefault(who, {}).setdefault(measure, {})
            found[group] = {"block": block, "agree": agree}
        return out

    def figure(self, where: str) -> Figure:
        panels = []
        for who, looks in LOOKS.items():
            for measure, words in MEASURES.items():
                lines = tuple(
                    Line(
                        self.label(group),
                        tuple((i, self.mean(key, i)) for i in range(self.depth)),
                        tone,
                    )
                    for group, tone in TONES.items()
                    # a token or two have their share, which would hide what image and text get
                    if (key := (who, measure, group)) in self.scores
                    and (measure == "share" or group not in ("begin", "answer"))
                )
                tops = [v.high or v.value for line in lines for _, v in line.points]
                high = 1.0 if measure == "share" else ceiling(max(tops))
                title = f"{looks}: {words}"
                panels.append(Lines(title, lines, axis="block", high=high, notes=()))
        return Figure(
            "attention", "Attention to image and text", tuple(panels), 2,
            where + "Per cent, mean over heads and questions, 95 % bootstrap intervals over "
            "questions. Begin: the first text token.",
        )  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        out = []
        for who, looks in LOOKS.items():
            parts = []
            for group in ("visual", "text"):
                block, agree = self.boot.peak(self.scores[who, "share", group])
                top = _percent(self.mean((who, "share", group), block))
                parts.append(f"{group} peaks in block {block} ({top}; {agree:.0%} of resamples)")
            out.append(f"{looks}: {', '.join(parts)}")
        return tuple(out)

    def table(self) -> Table:
        columns = ("looks", "measure", "group", "block", "value", "low", "high", "n")
        rows = []
        for key, cases in self.scores.items():
            for i in range(self.depth):
                v = self.mean(key, i)
                rows.append((*key[:2], self.label(key[2]), i, v.value, v.low, v.high, len(cases)))
        return Table("attention", columns, rows)


def _percent(value: Value) -> str:
    if value.low is None or value.high is None:
        return f"{100 * value.value:.1f} %"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f}–{100 * value.high:.1f})"
