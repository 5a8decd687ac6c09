"""The frame of locate-then-edit editors: values are searched, then written as low-rank deltas.

A fact is written where its subject is looked up, into the down projections of a few blocks (W k is
the value stored under key k). The searches of all groups are one batch; the solves are per group.
What a sequence carries between its edits are the raw keys of past edits (`memory`), in the state.

Shapes: E edits of all groups, n of one, N with remembered ones, d inputs and h outputs of a down
projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import layer_stats
from errata.algorithms.locate_then_edit.context_templates import (
    columns,
    contexts,
    prefixed,
    span_of,
)
from errata.algorithms.locate_then_edit.corpus import from_cases
from errata.algorithms.locate_then_edit.layer_stats import MOMENTS, site_of
from errata.algorithms.locate_then_edit.value_search import ROWS, ColumnRecorder, ValueSettings
from errata.core.editor import EditLog, Editor, EditResult, PrepareContext
from errata.core.errors import BadData, BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import run_to_block
from errata.core.state import State
from errata.core.types import Case, Edit
from errata.linalg import covariance, lowrank
from errata.patches.delta import Delta
from errata.training.optimise import generator

#: bytes of moments up to which `prepare` collects all layers, not only those that are edited
ALL_LAYERS = 4 << 30

Parts = dict[str, dict[str, Tensor]]


class RankOneUpdate(Editor):
    """Common settings, statistics, keys and memory. Subclasses write the values."""

    state_name = MOMENTS
    keeps_state = True
    state_settings = ("texts", "edited", "without")
    without_state = "Or take statistics of any text: errata stats BACKBONE --corpus F --out DIR."
    #: tokens of the sampled beginnings, each length once per starter
    lengths: ClassVar[tuple[int, ...]] = (10,)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """layers: blocks whose down projection is written, ascending; the value is of the last. ()
        = from an eighth to a quarter of the model's depth (4 to 8 of 32).

        token: where a fact is looked up, `subject` (its last token; the last one of the prompt for
        an edit that names none) or `last_prompt`. lr, steps, clamp, weight_decay, decay, kl_factor,
        stop_loss, scaled: of the value search. essence: what must go on as before, {} = subject.
        eos: the end token is part of the target. prefixes: `sampled`, `none`, or a file.
        memory: which keys of earlier edits are held: `none`, `keys` as they were when written,
        `recomputed` on the model that this had led to. ridge: of the moment, relative to tr(C)/d.
        max_upd_ratio: |dW| at most this times |W|, 0 = no limit. texts, edited, without: the
        questions that `prepare` takes statistics of, whether what a case edits is among them, and
        names that none may hold.
        """

        layers: tuple[int, ...] = ()
        token: Literal["subject", "last_prompt"] = "subject"
        lr: float = 0.5
        steps: int = 25
        clamp: float = 4.0
        weight_decay: float = 1e-3
        decay: Literal["linear", "squared"] = "linear"
        kl_factor: float = 0.0625
        essence: str = "{} is a"
        stop_loss: float = 0.05
        scaled: bool = False
        eos: bool = True
        prefixes: str = "sampled"
        memory: Literal["none", "keys", "recomputed"] = "none"
        ridge: float = 0.05
        max_upd_ratio: float = 0.0
        texts: int = 2000
        edited: bool = False
        without: tuple[str, ...] = ()

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if c.steps < 1 or not c.lr > 0 or not c.clamp > 0:
            raise BadSpec(
                f"editor '{self.name}': steps={c.steps}, lr={c.lr}, clamp={c.clamp} cannot be "
                "searched with. Give at least one step, and lr and clamp above 0."
            )

    @property
    def uses_state(self) -> bool:
        return True

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        c = self.config
        corpus = from_cases(
            cases, most=c.texts, edited=c.edited, without=c.without, rng=generator(seed, MOMENTS)
        )
        size = 8 * backbone.weight(site_of(0))[0] ** 2
        layers = () if size * backbone.depth <= ALL_LAYERS else self.layers(backbone)
        return layer_stats.collect(
            backbone, corpus, layer_stats.StatsSettings(layers=tuple(layers)), work
        )

    def layers(self, backbone: Backbone) -> list[int]:
        chosen = self.config.layers or range(backbone.depth // 8, backbone.depth // 4 + 1)
        return sorted({backbone.layer(i) for i in chosen})

    def search_settings(self, sites: Sequence[str], **more: Any) -> ValueSettings:
        c = self.config
        return ValueSettings(
            sites=tuple(sites), lr=c.lr, steps=c.steps, clamp=c.clamp, weight_decay=c.weight_decay,
            decay=c.decay, kl_factor=c.kl_factor, essence=c.essence, stop_loss=c.stop_loss,
            token=c.token, eos=c.eos, scaled=c.scaled, **more,
        )  # fmt: skip

    def beginnings(self, backbone: Backbone, seed: int) -> tuple[str, ...]:
        rng = generator(seed, "beginnings")
        return contexts(backbone, self.config.prefixes, self.lengths, rng)

    def factor(self, state: State, layer: int, weight: float) -> Tensor:
        """[d, d] Cholesky factor of weight * (C + ridge), made once for a state. Raises BadData."""
        name = f"factor/{layer}/{weight}/{self.config.ridge}"
        if name not in state.views:
            c = layer_stats.moment(state, layer)
            lower = covariance.factor(c, weight, self.config.ridge)
            if lower is None:
                raise BadData(
                    f"the moment of layer {layer} is singular: {state.meta['tokens']} tokens for "
                    f"{len(c)} features, or features that never moved. Take statistics of more "
                    "text, or --set ridge=0.05."
                )
            state.views[name] = lower
        factor: Tensor = state.views[name]
        return factor

    def remembered(self, state: State | None, layer: int) -> list[Tensor]:
        """The keys of earlier edits, [N, d] or none."""
        if self.config.memory == "none" or state is None:
            return []
        past = state.tensors.get(f"keys/{layer}")
        return [] if past is None else [past]

    def limited(
        self, backbone: Backbone, layer: int, a: Tensor, b: Tensor, account: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The part of a layer, cut to `max_upd_ratio`; its sizes are noted."""
        weight = backbone.site(site_of(layer)).first.weight
        assert isinstance(weight, Tensor)
        size = float(weight.float().norm())
        a, b = a.float().cpu().contiguous(), b.float().cpu().contiguous()
        factor = 1.0
        if self.config.max_upd_ratio:
            b, factor = lowrank.limited(a, b, self.config.max_upd_ratio * size)
        account["change"] = round(lowrank.norm(a, b) / size, 6)
        if factor < 1:
            account["clipped"] = round(factor, 6)
        return {"A": a, "B": b.contiguous()}


class KeyReader:
    """The prompts of all edits behind all beginnings, entered once, to be looked at again."""

    def __init__(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        beginnings: Sequence[str],
        token: str,
        floor: int,
    ) -> None:
        self.backbone, self.count = backbone, len(beginnings)
        size = max(1, ROWS // self.count)
        self.chunks = []
        for i in range(0, len(edits), size):
            asked = [(r, e, p) for r, e in edits[i : i + size] for p in beginnings]
            index = [r for r, _, _ in asked]
            batch = backbone.encode([prefixed(e.prompt, p) for _, e, p in asked], rows=index)
            where = columns(backbone, batch, [span_of(e, token) for _, e, _ in asked])
            rows = torch.tensor(index, device=batch.ids.device)
            self.chunks.append((backbone.enter(batch, floor, rows=rows), rows, where))

    def see(
        self, keys: Sequence[int], value: str | None = None, *, top: int
    ) -> tuple[dict[int, Tensor], Tensor]:
        """(per layer [E, P, d] the keys behind each beginning, bare first; [E, h] the output of
        site `value` in the bare prompt), with what is applied by now.
        """
        seen: list[ColumnRecorder] = []
        for state, rows, where in self.chunks:
            look = ColumnRecorder([site_of(i) for i in keys] + ([value] if value else []), where)
            with self.backbone.applied(look):
                run_to_block(self.backbone, state, top, rows=rows)
            seen.append(look)
        made = {
            i: torch.cat([s.x[site_of(i)] for s in seen]).view(
                -1, self.count, seen[0].x[site_of(i)].shape[1]
            )
            for i in keys
        }
        now = torch.cat([s.y[value] for s in seen])[:: self.count] if value else torch.empty(0)
        return made, now


def half_bare(keys_EPd: Tensor) -> Tensor:
    """[E, d] half the bare key, half the mean of those behind beginnings (MEMIT `compute_ks`)."""
    bare = keys_EPd[:, 0]
    return bare if keys_EPd.shape[1] == 1 else (bare + keys_EPd[:, 1:].mean(1)) / 2


def plain_mean(keys_EPd: Tensor) -> Tensor:
    """[E, d] the mean over all beginnings, the bare one among them (ROME `compute_u`)."""
    return keys_EPd.mean(1)


@contextmanager
def written(backbone: Backbone, groups: Sequence[Parts]) -> Iterator[None]:
    """What each group has written so far is live on its row."""
    sites = sorted({s for parts in groups for s in parts})
    if not sites:
        yield
        return
    rows: Parts = {}
    for site in sites:
        into, out = backbone.weight(site)
        rank = max(len(p[site]["A"]) for p in groups if site in p)
        a, b = torch.zeros(len(groups), rank, into), torch.zeros(len(groups), out, rank)
        for r, parts in enumerate(groups):
            if site in parts:
                own = parts[site]["A"]
                a[r, : len(own)], b[r, :, : len(own)] = own, parts[site]["B"]
        rows[site] = {"A": a, "B": b}
    patch = backbone.place(Delta(rows, rows=len(groups)).requires_grad_(False))
    with backbone.applied(patch):
        yield


def stacked(parts: Parts, site: str, more: Mapping[str, Tensor]) -> None:
    """Adds ranks to the part of a site."""
    if site in parts:
        more = {
            "A": torch.cat([parts[site]["A"], more["A"]]),
            "B": torch.cat([parts[site]["B"], more["B"]], dim=1),
        }
    parts[site] = dict(more)


def carried(state: State | None, keys: Mapping[int, Tensor]) -> State:
    """The state with the keys of one more edit; it still names the prepared one as its origin."""
    past = state.tensors if state is not None else {}
    tensors = {f"keys/{layer}": new.float().cpu() for layer, new in keys.items()}
    tensors = {k: torch.cat([past[k], v]) if k in past else v for k, v in tensors.items()}
    return state.grown(tensors) if state is not None else State(MOMENTS, tensors=tensors)


def found_of(
    parts: Parts, state: State | None, edits: Sequence[Edit], account: Sequence[Mapping[str, Any]]
) -> EditResult:
    """The patch of one group with an account of it; what is not finite was refused before."""
    log = EditLog(
        steps=sum(a["steps"] for a in account) / len(account),
        loss=sum(a["nll"] for a in account) / len(account),
        reached=all(a["reached"] for a in account),
        notes={"edits": [{"id": e.id, **a} for e, a in zip(edits, account, strict=True)]},
    )
    return EditResult(Delta(parts), state, log)


def where(edit: Edit, editor: RankOneUpdate) -> str:
    return "subject" if span_of(edit, editor.config.token) else "last_prompt"
