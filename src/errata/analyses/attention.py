"""Attention: how much attention image and text tokens get, block by block.

Source: DualEdit Fig. 1 (Shi et al. 2025): the mean attention score of a visual and of a textual
token per layer, and of the three visual tokens with the highest score. The paper names neither the
query token nor the group of the begin token, which gets much attention for every question. Here
there are two query tokens, side by side: the last of the prompt, where the answer begins, and the
last of prompt and answer (the edit's target), which the paper's own gate reads. The begin token is
a group of its own.

A score is the mean over heads. `share` is the sum over a group's tokens, `per token` (the paper's
score) the mean. The three visual tokens are chosen for each question and block.

Shapes: L blocks, B questions, T columns, Q = 2 query tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.analyses._summary import Summary, cells, text
from errata.analyses._token_groups import TokenGroups
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
from errata.core.formats.counts import counted
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.model.batch import Batch
from errata.core.types import Case

#: query tokens
LOOKS = {"prompt": "the last prompt token looks", "answer": "the answer's last token looks"}
MEASURES = {"share": "share of attention", "per_token": "mean per token"}
TONES: dict[str, Tone] = {
    "visual": "changes",
    "top visual": "wrong",
    "text": "stays",
    "begin": "soft",
    "answer": "right",
}

Key = tuple[str, str, str]
"""(query token, measure, group)."""
Scores = dict[Key, dict[str, list[float]]]
"""Key -> case -> [L]."""


class AttentionAnalysis(Analysis):
    """Attention to image, text and begin token, per block."""

    name = "attention"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """top: number of image tokens with the highest scores that are a group too."""

        top: int = 3

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without questions about images; BadBackbone, see `Backbone.attention`."""
        if self.config.top < 1:
            raise BadSpec(f"top={self.config.top} image tokens cannot be shown. Give 1 or more.")
        cases = [c for c in subject.cases if c.edit.prompt.images and c.edit.target.strip()]
        if not cases:
            raise BadSpec("attention needs questions about images. Name a --benchmark with some.")
        scores: Scores = {}
        for done, batch, part in _batches(subject, cases):
            for key, values in measured(subject, batch, self.config.top).items():
                rows = scores.setdefault(key, {})
                rows.update(zip((c.id for c in part), values.tolist(), strict=True))
            subject.progress("reading attention", done, len(cases))
        summary = AttentionSummary(scores, [c.id for c in cases], self.config.top)
        where = f"{subject.backbone.name}, {subject.benchmark}: {counted(len(cases), 'question')}. "
        return Findings(
            (summary.figure(where),),
            (summary.table(),),
            {"cases": len(cases), "peaks": summary.peaks()},
            (*summary.lines(), *first_look(len(cases), "question")),
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


def measured(subject: Subject, batch: Batch, top: int) -> dict[Key, Tensor]:
    """Key -> [B, L]."""
    columns_BQ = torch.stack([batch.lengths, batch.mask.sum(1)], dim=1) - 1
    weights_LBQT = subject.backbone.attention(batch, columns_BQ).mean(2)
    tokens = TokenGroups.of(batch)
    groups = {
        "visual": tokens.visual,
        "text": tokens.text | tokens.last,
        "begin": tokens.begin,
        "answer": tokens.answer,
    }
    out: dict[Key, Tensor] = {}
    for q, who in enumerate(LOOKS):
        w_BLT = weights_LBQT[:, :, q].transpose(0, 1)
        for group, mask in groups.items():
            if group == "answer" and who == "prompt":
                continue
            mask_B1T = mask.cpu()[:, None]
            share_BL = (w_BLT * mask_B1T).sum(-1)
            out[who, "share", group] = share_BL
            out[who, "per_token", group] = share_BL / mask_B1T.sum(-1).clamp(min=1)
        visual_BLT = w_BLT.masked_fill(~tokens.visual.cpu()[:, None], 0.0)
        count = min(top, int(tokens.visual.sum(1).min()))
        most_BLk = visual_BLT.topk(count, dim=-1).values
        out[who, "share", "top visual"] = most_BLk.sum(-1)
        out[who, "per_token", "top visual"] = most_BLk.mean(-1)
    return out


class AttentionSummary(Summary):
    """Means per query token, measure, group and block."""

    def __init__(self, scores: Scores, cases: Sequence[str], top: int) -> None:
        super().__init__(cases)
        self.scores, self.top = scores, top
        self.blocks = range(len(next(iter(next(iter(scores.values())).values()))))

    def label(self, group: str) -> str:
        return f"visual, top {self.top}" if group == "top visual" else group

    def mean_at(self, key: Key, block: int) -> Value:
        return self.at(self.scores[key], block, within=(0.0, 1.0))

    def peaks(self) -> dict[str, Any]:
        """Query token -> measure -> group -> the block with the highest mean."""
        out: dict[str, Any] = {}
        for (who, measure, group), rows in self.scores.items():
            peaks: dict[str, Any] = out.setdefault(who, {}).setdefault(measure, {})
            peaks[group] = self.peak(rows, self.blocks)
        return out

    def figure(self, where: str) -> Figure:
        panels = []
        for who, looks in LOOKS.items():
            for measure, words in MEASURES.items():
                lines = tuple(
                    Line(
                        self.label(group),
                        tuple((i, self.mean_at(key, i)) for i in self.blocks),
                        tone,
                    )
                    for group, tone in TONES.items()
                    # the scores of one or two tokens are so high that they would hide the others
                    if (key := (who, measure, group)) in self.scores
                    and (measure == "share" or group not in ("begin", "answer"))
                )
                tops = [v.high or v.value for line in lines for _, v in line.points]
                high = 1.0 if measure == "share" else ceiling(max(tops))
                title = f"{looks}: {words}"
                panels.append(Lines(title, lines, axis="block", high=high, notes=()))
        return Figure(
            "attention", "Attention to image and text", tuple(panels), 2,
            where + "Per cent, mean over heads and questions, 95 % intervals over "
            "questions. Begin: the first text token.",
        )  # fmt: skip

    def lines(self) -> tuple[str, ...]:
        out = []
        for who, looks in LOOKS.items():
            parts = []
            for group in ("visual", "text"):
                peak = self.peak(self.scores[who, "share", group], self.blocks)
                block, agree = peak["block"], peak["agree"]
                top = text(self.mean_at((who, "share", group), block), 1, scale=100, unit=" %")
                parts.append(f"{group} peaks in block {block} ({top}; {agree:.0%} of resamples)")
            out.append(f"{looks}: {', '.join(parts)}")
        return tuple(out)

    def table(self) -> Table:
        columns = ("looks", "measure", "group", "block", "value", "low", "high", "n")
        rows = [
            (*key[:2], self.label(key[2]), i, *cells(self.mean_at(key, i)), len(cases))
            for key, cases in self.scores.items()
            for i in self.blocks
        ]
        return Table("attention", columns, rows)
