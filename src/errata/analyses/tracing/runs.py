"""The runs of causal tracing: clean, corrupted, and corrupted with one state restored.

A fact is run with noise on its subject, once per copy of the noise and token. Blocks below the
restored one do not run again, and neither do the columns before the restored one, which it cannot
change (`Backbone.suffix`). Rows in which equally many columns run make one batch, so that none is
padding.

Shapes: F facts, B rows (a fact, a restored column and a copy of the noise each), T columns, S
columns that run, C columns of a fact, L restored blocks, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.analyses.tracing.facts import EMBEDDED, KnownFact
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState, SuffixState
from errata.core.model.recorder import Recorder
from errata.training.optimise import generator

#: What is restored: the hidden state after a block, or outputs of FFN or attention in a window.
STATES, MLP, ATTN = "states", "mlp", "attn"
KINDS = (STATES, MLP, ATTN)

ROWS, COLUMNS = 96, 4096
"""Most rows of a batch, and most columns of all its rows: a picture has many."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """sigma: standard deviation of the noise. window: blocks of a restored module.

    layers: restored blocks; a window lies around each.
    """

    sigma: float
    copies: int
    window: int
    layers: tuple[int, ...]
    seed: int = 0

    def restored(self, backbone: Backbone, kind: str, layer: int) -> list[str]:
        """The sites that are restored for a block, lowest first."""
        if kind == STATES:
            top = layer == backbone.depth - 1
            return [f"text.{layer}.block" if top else f"text.{layer + 1}.in"]
        low = max(0, layer - self.window // 2)
        high = min(backbone.depth, layer - self.window // 2 + self.window)
        sites = [f"text.{i}.{kind}" for i in range(low, high)]
        return [s for s in sites if s in backbone.hooks.sites]


@dataclass(frozen=True, eq=False)
class FactTrace:
    """Probabilities of a fact's answer, means over the copies of the noise.

    effects: kind -> [L, C] p(answer | restored) - p(answer | corrupted).
    """

    fact: KnownFact
    clean: float
    corrupted: float
    effects: Mapping[str, Tensor]


class SubjectNoise(Hook):
    """Adds noise [B, T, d] to the embeddings."""

    def __init__(self, noise_BTd: Tensor) -> None:
        super().__init__((EMBEDDED,))
        self.noise_BTd = noise_BTd

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return y + self.noise_BTd.to(y)


class CleanStates(Hook):
    """Keeps the outputs [B, T - first, d] of its sites from column `first` on."""

    def __init__(self, sites: Iterable[str], first: int) -> None:
        super().__init__(sites)
        self.first = first
        self.kept: dict[str, Tensor] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.kept[site] = y[:, self.first :].clone()
        return y

    def of(self, sites: Iterable[str], rows_B: Tensor, columns_B: Tensor) -> dict[str, Tensor]:
        """site -> [B, d] the output of row rows_B at columns_B."""
        out = {}
        for site in sites:
            y = self.kept[site]
            out[site] = y[rows_B.to(y.device), columns_B.to(y.device) - self.first]
        return out


class RestoreHook(Hook):
    """Replaces the outputs at one column of each row by the clean ones [B, d]."""

    def __init__(self, clean: Mapping[str, Tensor], columns_B: Tensor) -> None:
        super().__init__(clean)
        self.clean, self.columns_B = clean, columns_B

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        rows = torch.arange(y.shape[0], device=y.device)
        return y.index_put((rows, self.columns_B.to(y.device)), self.clean[site].to(y))


class CorruptedRows:
    """Rows with noise that can be entered at any block.

    answers [B]: the token whose probability counts. corrupted [B]: that without anything restored.
    columns_B: the column of each row that is restored. place_B: the same, among those that run.
    """

    def __init__(
        self, backbone: Backbone, batch: Batch, noise: Tensor, columns_B: Tensor, answers_B: Tensor
    ) -> None:
        self.backbone, self.columns_B, self.answers_B = backbone, columns_B, answers_B
        self.noise, self.start = SubjectNoise(noise), backbone.enter(batch, 0)
        first = self._behind_first_block()
        self.later: PrefixState | SuffixState = backbone.suffix(first, columns_B) or first
        self.whole = isinstance(self.later, PrefixState)
        self.place_B = columns_B if self.whole else torch.zeros_like(columns_B)
        recorder = Recorder(f"text.{i}.in" for i in range(2, backbone.depth))
        self.corrupted = self._probability(self.later, recorder)
        self.streams = {i: recorder.y[f"text.{i}.in"] for i in range(2, backbone.depth)}
        self.streams[1] = _stream(self.later)

    def _behind_first_block(self, *hooks: Hook) -> PrefixState:
        """The state behind block 0, with noise below; none of its hooks is needed any more."""
        with self.backbone.applied(self.noise, *hooks):
            state = self.backbone.enter(self.start, 1)
        return replace(state, stack=self.backbone.hooks.stack)

    def _probability(self, state: PrefixState | SuffixState, hook: Hook | None) -> Tensor:
        with self.backbone.applied(hook):
            odds = self.backbone.logits(state)[:, 0].softmax(-1)
        rows = torch.arange(odds.shape[0], device=odds.device)
        return odds[rows, self.answers_B.to(odds.device)].cpu()

    def restored(self, clean: Mapping[str, Tensor]) -> Tensor:
        """[B] the probability with the outputs of these sites restored to `clean` [B, d]."""
        lowest = {site: self.backbone.block_of(site) for site in clean}
        low = {s: clean[s] for s, block in lowest.items() if block == 0}
        high = {s: clean[s] for s in clean if s not in low}
        if low:
            below = self._behind_first_block(RestoreHook(low, self.columns_B))
            state = replace(self.later, stream=self._running(_stream(below)))
        else:
            entry = min(lowest.values())
            state = replace(self.later, layer=entry, stream=self.streams[entry])
        return self._probability(state, RestoreHook(high, self.place_B) if high else None)

    def _running(self, stream_BTd: Tensor) -> Tensor:
        """[B, S, d] the columns that run."""
        if self.whole:
            return stream_BTd
        steps = torch.arange(self.streams[1].shape[1], device=stream_BTd.device)
        at = self.columns_B.to(stream_BTd.device)[:, None] + steps
        at = at.clamp(max=stream_BTd.shape[1] - 1)[..., None]
        return stream_BTd.gather(1, at.expand(-1, -1, stream_BTd.shape[2]))


def _stream(state: PrefixState | SuffixState) -> Tensor:
    assert state.stream is not None
    return state.stream


@torch.no_grad()
def trace(
    backbone: Backbone, facts: Sequence[KnownFact], settings: TraceSettings
) -> list[FactTrace]:
    """Traces facts, all in the same batches."""
    by_kind = {
        kind: {i: settings.restored(backbone, kind, i) for i in settings.layers} for kind in KINDS
    }
    needed = {s for sites in by_kind.values() for each in sites.values() for s in each}
    clean = CleanStates(needed, min(fact.first for fact in facts))
    batch = backbone.encode([f.prompt for f in facts])
    with backbone.applied(clean):
        odds = backbone.logits(batch)[:, 0].softmax(-1)
    before = [float(odds[f, fact.answer]) for f, fact in enumerate(facts)]
    corrupted = [torch.zeros(len(fact.columns)) for fact in facts]
    effects = [
        {kind: torch.zeros(len(settings.layers), len(fact.columns)) for kind in KINDS}
        for fact in facts
    ]
    most = min(ROWS, COLUMNS // batch.ids.shape[1])
    for places in _places(facts, max(1, most // settings.copies)):
        owner = [f for f, _ in places for _ in range(settings.copies)]
        columns_B = torch.tensor([facts[f].columns[c] for f, c in places])
        columns_B = columns_B.repeat_interleave(settings.copies).to(batch.ids.device)
        rows = _corrupted(backbone, [facts[f] for f in owner], columns_B, settings)
        for (f, c), p in zip(places, _per_place(rows.corrupted, settings), strict=True):
            corrupted[f][c] = p
        for kind, by_layer in by_kind.items():
            for at, sites in enumerate(by_layer.values()):
                if not sites:  # a block without such a module has nothing to restore
                    continue
                own = clean.of(sites, torch.tensor(owner), columns_B)
                change_B = rows.restored(own) - rows.corrupted
                for (f, c), value in zip(places, _per_place(change_B, settings), strict=True):
                    effects[f][kind][at, c] = value
    return [
        FactTrace(fact, before[f], float(corrupted[f].mean()), effects[f])
        for f, fact in enumerate(facts)
    ]


def _places(facts: Sequence[KnownFact], most: int) -> Iterator[list[tuple[int, int]]]:
    """(fact, index of one of its columns) of a batch: in each, equally many columns follow."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for f, fact in enumerate(facts):
        for c, column in enumerate(fact.columns):
            by_length.setdefault(fact.columns[-1] - column, []).append((f, c))
    for _, places in sorted(by_length.items()):
        for start in range(0, len(places), most):
            yield places[start : start + most]


def _corrupted(
    backbone: Backbone, facts: Sequence[KnownFact], columns_B: Tensor, settings: TraceSettings
) -> CorruptedRows:
    """Rows of these facts, `settings.copies` of each in turn.

    The noise depends on the seed, the case and the copy alone, so that batches change nothing.
    """
    batch = backbone.encode([f.prompt for f in facts])
    noise = torch.zeros(*batch.ids.shape, backbone.width)
    for b, fact in enumerate(facts):
        rng = generator(settings.seed, "tracing", fact.case, b % settings.copies)
        draw = torch.randn(fact.last + 1 - fact.first, backbone.width, generator=rng)
        noise[b, fact.first : fact.last + 1] = settings.sigma * draw
    answers_B = torch.tensor([f.answer for f in facts])
    return CorruptedRows(backbone, batch, noise, columns_B, answers_B)


def _per_place(values_B: Tensor, settings: TraceSettings) -> list[float]:
    """The mean over the copies of the noise, for each place."""
    return list(values_B.view(-1, settings.copies).mean(1).tolist())
