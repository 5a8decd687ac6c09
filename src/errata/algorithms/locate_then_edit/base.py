"""What locate-then-edit editors share: settings, key statistics, keys, and memory of earlier edits.

A value is searched for every edit and then written, as a low-rank delta, into the down projections
of a few blocks (`pmet` also into the output projections of the attention), at the token where the
fact is looked up: W k is the value stored under key k. The searches of all groups are one batch;
the linear solves are done per group. In a sequence of edits the state carries the raw keys of
earlier edits (`memory`).

Shapes: E edits of all groups, n of one group, N with earlier ones, P context templates, d inputs
and h outputs of a down projection.
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
    context_templates,
    lookup_columns,
    lookup_span,
    with_template,
)
from errata.algorithms.locate_then_edit.corpus import from_cases
from errata.algorithms.locate_then_edit.layer_stats import FFN, MOMENTS, site_of, tensor_of
from errata.algorithms.locate_then_edit.stream import stream_site
from errata.algorithms.locate_then_edit.value_search import (
    ROWS,
    ColumnRecorder,
    ValueSettings,
    search_bytes,
)
from errata.algorithms.locate_then_edit.written import notice, oversized, unwritten
from errata.core.editor import EditLog, Editor, EditResult
from errata.core.errors import BadData, BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.recorder import run_to_block
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit
from errata.linalg import covariance, lowrank
from errata.patches.delta import Delta
from errata.training.optimise import generator

#: bytes of moments up to which `prepare` collects all layers, not only those that are edited
ALL_LAYERS = 4 << 30

Parts = dict[str, dict[str, Tensor]]


class LocateThenEdit(Editor):
    """Base of ROME, MEMIT, PMET and AlphaEdit. Subclasses implement `find`."""

    state_name = MOMENTS
    keeps_state = True
    in_chunks = True
    state_settings: ClassVar[tuple[str, ...]] = ("texts", "edited", "without")
    without_state = "Or take statistics of any text: errata stats BACKBONE --corpus F --out DIR."
    #: hub ids (without the owner) of the models that the papers edit
    preset_models: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("gpt2-medium", "gpt2-large", "gpt2-xl")},
        "gpt-j": r"gpt-j-6b",
        "gpt-neox": r"gpt-neox-20b",
        "llama-3": r"(meta-)?llama-3-8b(-instruct)?",
    }
    #: tokens of the sampled templates, each length once per starter
    template_lengths: ClassVar[tuple[int, ...]] = (10,)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """layers: blocks whose down projection is written, ascending; the value is searched at the
        last one. () = from an eighth to a quarter of the depth (4 to 8 of 32).

        token: where a fact is looked up, the last token of the `subject` (for an edit without one,
        of the prompt) or `last_prompt`. lr: step size of Adam in the search for the value; `auto`
        is relative to the norm of the value that the search starts from. steps: updates of that
        search at most. clamp: largest change of the value, as a multiple of its
        norm. weight_decay: weight of the penalty on that change. decay: the penalty, `linear`
        |delta| / |h|^2 or `squared` (|delta| / |h|)^2. kl_factor: weight of the KL term that keeps
        what follows `kl_prompt`. kl_prompt: the prompt whose next-token distribution is kept; `{}`
        stands for the subject; the KL term is taken at the subject's last token, so that only words
        in front of it count. stop_loss: the search ends when the loss is below it. scaled: steps
        grow with hidden states of a norm above 100, as in UniKE. eos: the end token is part of the
        target. context_templates: texts in front of the prompt, `sampled` from the model, `none`,
        or a file with one a line. memory: whether the solve protects the `keys` of earlier
        edits, or `none`; they are those on the model after that edit, which are also those that it
        was written with, since the keys of a layer depend on the layers below it alone.
        max_upd_ratio: |dW| at most this
        times |W|, 0 = no limit. texts: questions that `prepare` takes key statistics of. edited:
        whether questions about edited facts are among them. without: names that none of them may
        mention.
        """

        renamed: ClassVar[Mapping[str, str]] = {
            "essence": "kl_prompt",
            "prefixes": "context_templates",
        }
        renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
            "memory": {"recomputed": "keys"}
        }
        layers: tuple[int, ...] = ()
        token: Literal["subject", "last_prompt"] = "subject"
        lr: float | Literal["auto"] = "auto"
        steps: int = 25
        clamp: float = 4.0
        weight_decay: float = 1e-3
        decay: Literal["linear", "squared"] = "linear"
        kl_factor: float = 0.0625
        kl_prompt: str = "{} is a"
        stop_loss: float = 0.05
        scaled: bool = False
        eos: bool = True
        context_templates: str = "sampled"
        memory: Literal["none", "keys"] = "none"
        max_upd_ratio: float = 0.0
        texts: int = 2000
        edited: bool = False
        without: tuple[str, ...] = ()

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if c.steps < 1 or (c.lr != "auto" and not c.lr > 0) or not c.clamp > 0:
            raise BadSpec(
                f"editor '{self.name}': steps={c.steps}, lr={c.lr}, clamp={c.clamp} cannot be "
                "searched with. Give at least one step, lr above 0 (or auto), and clamp above 0."
            )

    @property
    def uses_state(self) -> bool:
        return True

    def idle(self) -> Mapping[str, str]:
        c, idle = self.config, dict(super().idle())
        if c.token == "last_prompt":  # the KL term is taken at the subject
            idle |= dict.fromkeys(("kl_factor", "kl_prompt"), "token=last_prompt")
        if not c.kl_factor:
            idle["kl_prompt"] = "kl_factor=0"
        if not c.weight_decay:
            idle["decay"] = "weight_decay=0"
        return idle

    def stats_settings(self, layers: tuple[int, ...]) -> layer_stats.StatsSettings:
        """Which key statistics are collected."""
        return layer_stats.StatsSettings(layers=layers)

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        c = self.config
        corpus = from_cases(
            cases, most=c.texts, edited=c.edited, without=c.without, rng=generator(seed, MOMENTS)
        )
        size = 8 * backbone.weight(site_of(0))[0] ** 2
        layers = () if size * backbone.depth <= ALL_LAYERS else self.layers(backbone)
        return layer_stats.collect(backbone, corpus, self.stats_settings(tuple(layers)), work)

    def layers(self, backbone: Backbone) -> list[int]:
        chosen = self.config.layers or range(backbone.depth // 8, backbone.depth // 4 + 1)
        return sorted({backbone.layer(i) for i in chosen})

    def edited_sites(self, backbone: Backbone) -> list[str]:
        return [site_of(i) for i in self.layers(backbone)]

    def need(self, backbone: Backbone, edits: Sequence[Edit], state: State | None = None) -> float:
        """The search, and the factors of the moments (float64) that a state keeps once made."""
        templates, layers = self.templates(backbone, 0), self.layers(backbone)
        settings = self.search_settings([stream_site(backbone, layers[-1])])
        search = search_bytes(backbone, list(enumerate(edits)), templates, settings)
        factors = [8.0 * backbone.weight(s)[0] ** 2 for s in self.edited_sites(backbone)]
        return sum(factors) + max(search, 2 * max(factors))

    def state_need(self, backbone: Backbone, state: State | None) -> float | None:
        if state is not None:
            return super().state_need(backbone, state)
        return sum(4.0 * backbone.weight(s)[0] ** 2 for s in self.edited_sites(backbone))

    def search_settings(self, sites: Sequence[str], **more: Any) -> ValueSettings:
        c = self.config
        return ValueSettings(
            sites=tuple(sites), lr=c.lr, steps=c.steps, clamp=c.clamp, weight_decay=c.weight_decay,
            decay=c.decay, kl_factor=c.kl_factor, kl_prompt=c.kl_prompt, stop_loss=c.stop_loss,
            token=c.token, eos=c.eos, scaled=c.scaled, **more,
        )  # fmt: skip

    def templates(self, backbone: Backbone, seed: int) -> tuple[str, ...]:
        rng = generator(seed, "beginnings")
        return context_templates(
            backbone, self.config.context_templates, self.template_lengths, rng
        )

    def factor(self, state: State, layer: int, weight: float, part: str = FFN) -> Tensor:
        """[d, d] Cholesky factor of weight * (C + ridge), made once for a state. Raises BadData."""
        name = f"factor/{part}/{layer}/{weight}/{self.config.ridge}"
        if name not in state.views:
            c = layer_stats.moment(state, layer, part)
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

    def past_keys(self, state: State | None, layer: int, part: str = FFN) -> list[Tensor]:
        """The keys of earlier edits: one tensor [N, d], or an empty list."""
        if self.config.memory == "none" or state is None:
            return []
        past = state.tensors.get(tensor_of("keys", layer, part))
        return [] if past is None else [past]

    def clipped(
        self, backbone: Backbone, site: str, a: Tensor, b: Tensor, notes: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The update B A of a site, scaled down to `max_upd_ratio`; `notes` gets its size."""
        size = weight_norm(backbone, site)
        a, b = a.float().cpu().contiguous(), b.float().cpu().contiguous()
        factor = 1.0
        if self.config.max_upd_ratio:
            b, factor = lowrank.limited(a, b, self.config.max_upd_ratio * size)
        notes["change"] = round(lowrank.norm(a, b) / size, 6)
        if factor < 1:
            notes["clipped"] = round(factor, 6)
        return {"A": a, "B": b.contiguous()}

    def remedy(self) -> str:
        """What to do where a value is mostly not written, one sentence."""
        return "Choose other --set layers=..."

    def results(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        parts: Sequence[Parts],
        states: Sequence[State | None],
        logs: Sequence[Sequence[dict[str, Any]]],
        remarks: Sequence[str] = (),
    ) -> list[EditResult]:
        """A result per group. Warns of values that are not written, and of changes that outweigh
        their weights; both lines, and `remarks`, are in the notes of the patch too.
        """
        limit = self.config.max_upd_ratio
        smaller = "Lower --set clamp=..., or give a --set max_upd_ratio=... below 1."
        remedy = self.remedy()
        if any("clipped" in size for g in logs for e in g for size in e["layers"].values()):
            remedy = f"max_upd_ratio={limit:g} has cut the change: raise it. Else: {remedy}"
        size = {s: weight_norm(backbone, s) for s in sorted({s for p in parts for s in p})}
        changes = [{s: lowrank.norm(d["A"], d["B"]) / size[s] for s, d in p.items()} for p in parts]
        results = []
        for group, delta, state, lines, change in zip(
            groups, parts, states, logs, changes, strict=True
        ):
            said = [*remarks, unwritten(group, lines, remedy), oversized(change, smaller)]
            results.append(result_of(delta, state, group, lines, [line for line in said if line]))
        edits = [e for g in groups for e in g]
        largest = {s: max(c.get(s, 0.0) for c in changes) for s in size}
        for line in (
            unwritten(edits, [line for g in logs for line in g], remedy),
            oversized(largest, smaller),
        ):
            if line:
                notice(self.name, line)
        return results


class KeyReader:
    """The prompts of all edits behind all templates, entered once and read several times."""

    def __init__(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        templates: Sequence[str],
        token: str,
        floor: int,
    ) -> None:
        self.backbone, self.count = backbone, len(templates)
        self.token, self.floor, self.held = token, floor, 0
        self.chunks: list[tuple[Batch | PrefixState, Tensor, Tensor]] = []
        size = max(1, ROWS // self.count)
        for i in range(0, len(edits), size):
            self._enter(edits[i : i + size], templates)

    def _enter(self, edits: Sequence[tuple[int, Edit]], templates: Sequence[str]) -> None:
        """Enters these edits, in as many batches as memory asks for."""
        bb = self.backbone
        part = [(r, e, p) for r, e in edits for p in templates]
        index = [r for r, _, _ in part]
        batch = bb.encode([with_template(e.prompt, p) for _, e, p in part], rows=index)
        fit = bb.fitting(bb.bytes_to_enter(batch), len(edits))
        if fit < len(edits):
            for i in range(0, len(edits), fit):
                self._enter(edits[i : i + fit], templates)
            return
        where = lookup_columns(bb, batch, [lookup_span(e, self.token) for _, e, _ in part])
        rows = torch.tensor(index, device=batch.ids.device)
        what: Batch | PrefixState = batch
        self.held += batch.ids.numel() * bb.width * 4
        if self.held <= bb.budget / 2:  # else each reading starts from the words
            what = bb.enter(batch, self.floor, rows=rows)
        self.chunks.append((what, rows, where))

    def read(
        self, keys: Sequence[int], value: str | None = None, *, top: int, part: str = FFN
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Reads the model with what is applied now, up to block `top`.

        Returns per layer in `keys` the keys [E, P, d] of a part, of the bare prompt first, and the
        output [E, h] of the site `value` in the bare prompt.
        """
        sites = {i: site_of(i, part) for i in keys}
        records: list[ColumnRecorder] = []
        for state, rows, where in self.chunks:
            record = ColumnRecorder([*sites.values(), *([value] if value else [])], where)
            with self.backbone.applied(record):
                run_to_block(self.backbone, state, top, rows=rows)
            records.append(record)
        read = {i: torch.cat([r.x[site] for r in records]) for i, site in sites.items()}
        keys_EPd = {i: x.view(-1, self.count, x.shape[1]) for i, x in read.items()}
        if value is None:
            return keys_EPd, torch.empty(0)
        return keys_EPd, torch.cat([r.y[value] for r in records])[:: self.count]


def bare_and_mean(keys_EPd: Tensor) -> Tensor:
    """[E, d] half the bare key, half the mean over the other templates (MEMIT `compute_ks`)."""
    bare = keys_EPd[:, 0]
    return bare if keys_EPd.shape[1] == 1 else (bare + keys_EPd[:, 1:].mean(1)) / 2


def mean_key(keys_EPd: Tensor) -> Tensor:
    """[E, d] the mean over all templates, the bare one among them (ROME `compute_u`)."""
    return keys_EPd.mean(1)


@contextmanager
def live_updates(backbone: Backbone, groups: Sequence[Parts]) -> Iterator[None]:
    """The updates that each group has so far are live on its row."""
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


def add_ranks(parts: Parts, site: str, more: Mapping[str, Tensor]) -> None:
    """Adds the ranks of an update to the update of a site."""
    if site in parts:
        more = {
            "A": torch.cat([parts[site]["A"], more["A"]]),
            "B": torch.cat([parts[site]["B"], more["B"]], dim=1),
        }
    parts[site] = dict(more)


def with_keys(state: State | None, keys: Mapping[int, Tensor], part: str = FFN) -> State:
    """The state with the keys of one more edit per layer."""
    past = state.tensors if state is not None else {}
    tensors = {tensor_of("keys", layer, part): new.float().cpu() for layer, new in keys.items()}
    tensors = {k: torch.cat([past[k], v]) if k in past else v for k, v in tensors.items()}
    return state.grown(tensors) if state is not None else State(MOMENTS, tensors=tensors)


def weight_norm(backbone: Backbone, site: str) -> float:
    """The Frobenius norm of a site's weight."""
    weight = backbone.site(site).first.weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().float().norm())


def result_of(
    parts: Parts,
    state: State | None,
    edits: Sequence[Edit],
    logs: Sequence[Mapping[str, Any]],
    remarks: Sequence[str] = (),
) -> EditResult:
    """The patch of one group, and the log of its search and solve."""
    said = {"remarks": list(remarks)} if remarks else {}
    log = EditLog(
        steps=sum(a["steps"] for a in logs) / len(logs),
        loss=sum(a["nll"] for a in logs) / len(logs),
        reached=all(a["reached"] for a in logs),
        notes={"edits": [{"id": e.id, **a} for e, a in zip(edits, logs, strict=True)], **said},
    )
    return EditResult(Delta(parts), state, log)


def lookup_token(edit: Edit, editor: LocateThenEdit) -> str:
    """`subject` or `last_prompt`: where the edit was looked up."""
    return "subject" if lookup_span(edit, editor.config.token) else "last_prompt"
