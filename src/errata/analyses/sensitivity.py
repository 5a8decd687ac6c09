"""Sensitivity: how noise on image or text tokens changes the answer, block by block.

Source: DualEdit Fig. 2 (Shi et al. 2025): KL divergence between the clean and the perturbed output
when Gaussian noise of several sizes is added to the visual, the textual, or all representations at
a layer. Here: KL(clean || noised) of the first answer token's distribution, with noise on the
hidden states that enter a block. Text means the tokens that DualEdit's adapter changes, without the
last prompt token, whose hidden state becomes the answer: that token is a group of its own. The
begin token never gets noise.

Hidden states grow with depth, so that one sigma is large in low blocks and small in high ones.
Therefore there are two figures: `absolute`, as published, and `relative`, where sigma is a multiple
of the standard deviation of the noised tokens' hidden states in that question at that block (of
image and text tokens separately).

`excess` is KL(both) - KL(visual) - KL(text): 0 where the two add up.

Shapes: B questions, T columns, L blocks, d width of the hidden states, V vocabulary.
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
from errata.core.figure import Figure, Findings, Line, Lines, Table, Tone, Value, ceiling
from errata.core.formats.counts import counted
from errata.core.hooks.context import HookContext
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.model.batch import Batch
from errata.core.model.recorder import Recorder
from errata.training.optimise import generator

TONES: tuple[Tone, ...] = ("soft", "changes", "stays", "wrong", "right")
WORDS = {
    "visual": "noise on image tokens",
    "text": "noise on the question's text",
    "both": "noise on both",
    "last": "noise on the last prompt token",
}
UNITS = ("absolute", "relative")

Key = tuple[str, str, float]
"""(absolute or relative, which tokens, sigma)."""


@dataclass
class SensitivityRecords:
    """case -> [L]: kl per key, std per group."""

    kl: dict[Key, dict[str, list[float]]]
    std: dict[str, dict[str, list[float]]]


class NoiseHook(Recorder):
    """Adds noise [B, T, d] times sigma at the columns of each of `masks` [B, T].

    relative: sigma is a multiple of the standard deviation of the hidden states of each mask, since
    image and text tokens differ in size. std: these deviations, [B] per mask.
    """

    def __init__(
        self, site: str, masks: Sequence[Tensor], noise: Tensor, sigma: float, *, relative: bool
    ) -> None:
        super().__init__((site,))
        self.masks, self.noise, self.sigma, self.relative = masks, noise, sigma, relative
        self.std: list[Tensor] = []

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        parts = [mask.to(y.device)[..., None] for mask in self.masks]
        self.std = [_std(y.float(), part) for part in parts]
        size_BT1 = torch.zeros((), device=y.device)
        for part_BT1, std_B in zip(parts, self.std, strict=True):
            unit = std_B[:, None, None] if self.relative else 1.0
            size_BT1 = size_BT1 + part_BT1 * unit * self.sigma
        return y + (self.noise.to(y.device) * size_BT1).to(y.dtype)


def _std(y_BTd: Tensor, mask_BT1: Tensor) -> Tensor:
    """[B] over the tokens of a mask and all features; 0 where it is empty."""
    state = y_BTd * mask_BT1
    count_B = (mask_BT1.sum((1, 2)) * y_BTd.shape[-1]).clamp(min=1)
    mean_B = state.sum((1, 2)) / count_B
    spread = ((y_BTd - mean_B[:, None, None]) * mask_BT1).square().sum((1, 2)) / count_B
    return spread.sqrt()


class SensitivityAnalysis(Analysis):
    """KL of the answer under noise on image, text, both, and the last token."""

    name = "sensitivity"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """absolute, relative: sizes of noise, see above; at most five each, () for no figure.

        layers: blocks whose input gets noise, negative from the end; () = all. draws: of noise per
        question and block, the same for every size and group.
        """

        absolute: tuple[float, ...] = (0.3, 1.0, 3.0)
        relative: tuple[float, ...] = (0.3, 1.0, 3.0)
        layers: tuple[int, ...] = ()
        draws: int = 1

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without questions about images, or with sizes that cannot be drawn."""
        c = self.config
        by_unit = {"absolute": c.absolute, "relative": c.relative}
        for unit, sizes in by_unit.items():
            if len(sizes) > len(TONES) or any(s <= 0 for s in sizes):
                raise BadSpec(f"{unit}={list(sizes)}: give up to {len(TONES)} sizes above 0.")
        if not (c.absolute or c.relative) or c.draws < 1:
            raise BadSpec("there is no noise to add. Give absolute or relative sizes, and draws.")
        cases = [x for x in subject.cases if x.edit.prompt.images]
        if not cases:
            raise BadSpec("sensitivity needs questions about images. Name a --benchmark with some.")
        layers = sorted({subject.backbone.layer(i) for i in c.layers})
        layers = layers or list(range(subject.backbone.depth))
        noises = [(unit, s) for unit, sizes in by_unit.items() for s in sizes]
        records = SensitivityRecords({}, {})
        for start in range(0, len(cases), subject.rows):
            part = cases[start : start + subject.rows]
            batch = subject.backbone.encode([x.edit.prompt for x in part])
            noised(subject, batch, [x.id for x in part], layers, noises, c.draws, records)
            subject.progress("adding noise", start + len(part), len(cases))
        summary = SensitivitySummary(records, layers, [x.id for x in cases])
        where = f"{subject.backbone.name}, {subject.benchmark}: {counted(len(cases), 'question')}. "
        return Findings(
            tuple(summary.figure(unit, where) for unit, sizes in by_unit.items() if sizes),
            (summary.table(), summary.excess()),
            {
                "cases": len(cases),
                "blocks": layers,
                "std": summary.stds(),
                "peaks": summary.peaks(),
            },
            (*summary.lines(), *first_look(len(cases), "question")),
        )


def groups(batch: Batch) -> dict[str, tuple[Tensor, ...]]:
    """Group -> the tokens that get noise: masks [B, T], one per modality."""
    m = TokenGroups.of(batch)
    return {
        "visual": (m.visual,), "text": (m.text,), "both": (m.visual, m.text), "last": (m.last,),
    }  # fmt: skip


@torch.no_grad()
def noised(
    subject: Subject,
    batch: Batch,
    names: Sequence[str],
    layers: Sequence[int],
    sizes: Sequence[tuple[str, float]],
    draws: int,
    records: SensitivityRecords,
) -> None:
    """Adds the KL divergences of a batch of questions to `records`."""
    bb = subject.backbone
    clean = bb.logits(batch)[:, 0].log_softmax(-1)
    for index, layer in enumerate(layers):
        entered = bb.enter(batch, layer)
        for draw in range(draws):
            noise = torch.zeros(*batch.ids.shape, bb.width)
            for b, name in enumerate(names):  # each from a seed, so that batching changes nothing
                rng = generator(subject.seed, "sensitivity", name, layer, draw)
                n = int(batch.lengths[b])
                noise[b, :n] = torch.randn(n, bb.width, generator=rng)
            for group, masks in groups(batch).items():
                for unit, size in sizes:
                    hook = NoiseHook(
                        f"text.{layer}.in", masks, noise, size, relative=unit == "relative"
                    )
                    noisy = bb.resume(entered, hook)[:, 0].log_softmax(-1)
                    kl_B = (clean.exp() * (clean - noisy)).sum(-1).clamp(min=0).tolist()
                    _add(records.kl.setdefault((unit, group, size), {}), names, index, kl_B, draws)
                if not draw and len(masks) == 1:
                    _add(records.std.setdefault(group, {}), names, index, hook.std[0].tolist(), 1)


def _add(
    rows: dict[str, list[float]],
    names: Sequence[str],
    index: int,
    values: Sequence[float],
    draws: int,
) -> None:
    for name, value in zip(names, values, strict=True):
        row = rows.setdefault(name, [])
        row.extend([0.0] * (index + 1 - len(row)))
        row[index] += value / draws


class SensitivitySummary(Summary):
    """Means per unit, sigma, group and block."""

    def __init__(
        self, records: SensitivityRecords, layers: Sequence[int], cases: Sequence[str]
    ) -> None:
        super().__init__(cases)
        self.records, self.layers = records, layers

    def sizes(self, unit: str) -> list[float]:
        return sorted({size for u, _, size in self.records.kl if u == unit})

    def peaks(self) -> dict[str, Any]:
        """unit -> sigma -> group -> the block with the highest KL."""
        out: dict[str, Any] = {}
        for (unit, group, size), rows in self.records.kl.items():
            peaks: dict[str, Any] = out.setdefault(unit, {}).setdefault(f"{size:g}", {})
            peaks[group] = self.peak(rows, self.layers)
        return out

    def stds(self) -> dict[str, list[float]]:
        """Group -> mean standard deviation of its hidden states, per block."""
        return {
            group: [self.at(rows, i).value for i in range(len(self.layers))]
            for group, rows in self.records.std.items()
        }

    def figure(self, unit: str, where: str) -> Figure:
        panels = []
        for group, words in WORDS.items():
            lines = tuple(
                Line(
                    f"σ = {size:g}" + (" × std" if unit == "relative" else ""),
                    tuple(
                        (layer, self.at(self.records.kl[unit, group, size], i))
                        for i, layer in enumerate(self.layers)
                    ),
                    tone,
                )
                for size, tone in zip(self.sizes(unit), TONES, strict=False)
            )
            top = max(v.high or v.value for line in lines for _, v in line.points)
            panels.append(Lines(words, lines, axis="block", high=ceiling(top), percent=False))
        std = "; ".join(
            f"{group} {values[0]:.2g} to {values[-1]:.2g}" for group, values in self.stds().items()
        )
        how = (
            "σ in units of the noised tokens' own standard deviation"
            if unit == "relative"
            else "σ in units of the stream"
        )
        return Figure(
            f"sensitivity-{unit}", f"Sensitivity to noise, {unit}", tuple(panels), 2,
            f"{where}KL(clean || noised) of the first answer token in nats, noise on the stream "
            f"that enters a block; {how}. 95 % intervals over questions. Standard "
            f"deviation of the states from the first block shown to the last: {std}.",
        )  # fmt: skip

    def differences(self) -> Iterator[tuple[str, float, int, Value]]:
        """(unit, sigma, block, KL of both minus the two KLs)."""
        for unit in UNITS:
            for size in self.sizes(unit):
                parts = [self.records.kl[unit, g, size] for g in ("both", "visual", "text")]
                rows = {
                    case: [b - v - t for b, v, t in zip(*(p[case] for p in parts), strict=True)]
                    for case in parts[0]
                }
                for i, layer in enumerate(self.layers):
                    yield unit, size, layer, self.at(rows, i)

    def lines(self) -> tuple[str, ...]:
        out = []
        for unit, by_size in self.peaks().items():
            for size, peaks in by_size.items():
                parts = [
                    f"{group} block {p['block']} ({p['agree']:.0%} of resamples)"
                    for group, p in peaks.items()
                ]
                out.append(f"{unit} sigma {size}: most sensitive: {', '.join(parts)}")
        for unit in UNITS:
            for size in self.sizes(unit):
                excess = [(i, v) for u, s, i, v in self.differences() if (u, s) == (unit, size)]
                block, value = max(excess, key=lambda e: abs(e[1].value))
                out.append(
                    f"{unit} sigma {size:g}: KL of both minus the two KLs is furthest from 0 in "
                    f"block {block}: {text(value, to=' to ')}"
                )
        return tuple(out)

    def table(self) -> Table:
        columns = (
            *("unit", "tokens", "sigma", "block", "kl", "low", "high", "n"),
            *("std", "sigma_absolute", "sigma_relative"),
        )
        rows = [
            (unit, group, size, layer, *cells(self.at(cases, i)), len(cases),
             *self._sizes(unit, group, size, i))
            for (unit, group, size), cases in self.records.kl.items()
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip
        return Table("sensitivity", columns, rows)

    def _sizes(self, unit: str, group: str, size: float, index: int) -> tuple[float | None, ...]:
        """The mean standard deviation of the hidden states, and sigma in both units.

        Noise on both modalities has two deviations, so its sigma is given in its own unit only.
        """
        if group not in self.records.std:
            return (None, size, None) if unit == "absolute" else (None, None, size)
        std = self.at(self.records.std[group], index).value
        both = (size * std, size) if unit == "relative" else (size, size / std if std else None)
        return (std, *(x if x is None else round(x, 6) for x in both))

    def excess(self) -> Table:
        columns = ("unit", "sigma", "block", "excess", "low", "high")
        rows = [(*where, *cells(value)) for *where, value in self.differences()]
        return Table("sensitivity-excess", columns, rows)
