"""What a training step sees: rows to ask, entered once behind the frozen trunk and kept.

A training case gives a pool of examples: the edit itself (`reliability`), questions that must give
the new answer (`generality`) and questions whose answer must stay (`locality`). A pool is always
entered as one batch, so that its activations do not depend on the order of the training, and a
resumed training sees the same bits. A step then puts examples of several pools into one batch.

Shapes: B rows of a step, T columns, M target tokens, V vocabulary, d stream width, t tokens of one
row, m target tokens of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.types import Case, Prompt
from errata.training.optimise import target_loss

Role = Literal["reliability", "generality", "locality"]
ROLES: tuple[Role, ...] = ("reliability", "generality", "locality")
_REBUILT = ("input_ids", "inputs_embeds", "attention_mask")


@dataclass(frozen=True)
class TrainExample:
    """One question of a training case, with the answer that is teacher forced.

    `before` is the prompt that the unedited model is asked for a locality row, where an editor
    shows the edited one another prompt.
    """

    role: Role
    prompt: Prompt
    target: str
    kind: str = ""
    before: Prompt | None = None


@dataclass(frozen=True, eq=False)
class CachedExample:
    """One row behind the trunk: ids [t], vision [t], stream [t, d]; `unedited` [m, V] logits.

    `extras` are the other keywords of the text model's forward, cut to this row.
    """

    row: TrainExample
    ids: Tensor
    vision: Tensor
    length: int
    target: tuple[int, ...]
    stream: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    unedited: Tensor | None = None

    @property
    def bytes(self) -> int:
        tensors = [self.ids, self.vision, self.stream, self.unedited]
        tensors += [t for v in self.extras.values() for t in _tensors(v)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class ExamplePool:
    """The pools of training cases, made when first needed, kept up to `limit` bytes.

    floor: the block at which the trunk ends, None where nothing is frozen below.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows_of: Callable[[Case], Sequence[TrainExample]],
        *,
        floor: int | None,
        eos: bool,
        limit: int,
    ) -> None:
        self.backbone, self.rows_of = backbone, rows_of
        self.floor, self.eos, self.limit = floor, eos, limit
        self.bytes = 0
        self._kept: dict[tuple[str, str], tuple[CachedExample, ...]] = {}

    def of(self, case: Case) -> tuple[CachedExample, ...]:
        """The pool of a case; it is kept while there is room."""
        key = (case.task, case.id)
        if key in self._kept:
            return self._kept[key]
        pool = self._make(list(self.rows_of(case)))
        size = sum(p.bytes for p in pool)
        if self.bytes + size <= self.limit:
            self._kept[key] = pool
            self.bytes += size
        return pool

    @torch.no_grad()
    def _make(self, rows: list[TrainExample]) -> tuple[CachedExample, ...]:
        bb = self.backbone
        assert not bb.hooks.stack, "training starts from the unedited model"
        batch = _encoded(bb, rows, self.eos)
        state: Batch | PrefixState = batch
        if self.floor is not None and self.floor > 0:
            state = bb.enter(batch, self.floor)
        pieces = _pieces(rows, batch, state if isinstance(state, PrefixState) else None)
        asked = [b for b, r in enumerate(rows) if r.role == "locality"]
        if not asked:
            return pieces
        if any(r.before is not None for r in rows):
            plain = [replace(rows[b], prompt=rows[b].before or rows[b].prompt) for b in asked]
            logits = bb.logits(_encoded(bb, plain, self.eos))
        else:
            logits = bb.logits(state)[asked]
        out = list(pieces)
        for n, b in enumerate(asked):
            out[b] = replace(out[b], unedited=logits[n, : len(out[b].target)].clone())
        return tuple(out)


@dataclass(eq=False)
class TrainBatch:
    """One batch of a training step: rows of several cases, each case's edit first.

    of_case [B] says whose row is whose, and serves as `rows` of a patch with a row per case. `rng`
    depends on seed and step alone.
    """

    backbone: Backbone
    cases: tuple[Case, ...]
    pieces: tuple[CachedExample, ...]
    of_case: Tensor
    floor: int | None
    eos: bool
    rng: torch.Generator

    @cached_property
    def state(self) -> Batch | PrefixState:
        """All rows behind the trunk, or as a batch where there is none."""
        return self.part(range(len(self.pieces)))

    @cached_property
    def edits(self) -> Batch | PrefixState:
        """The edits themselves, one row per case, in the order of `cases`."""
        first = [self.of_case.tolist().index(c) for c in range(len(self.cases))]
        assert all(self.pieces[i].row.role == "reliability" for i in first)
        return self.part(first)

    def index(self, *roles: Role) -> list[int]:
        """The rows of these roles."""
        return [i for i, p in enumerate(self.pieces) if p.row.role in roles]

    def part(self, index: Sequence[int]) -> Batch | PrefixState:
        """Some rows, without the padding that others need."""
        pieces, rows = [self.pieces[i] for i in index], self.of_case[list(index)]
        if all(p.stream is not None for p in pieces):
            assert self.floor is not None
            state = _put_together(pieces, self.floor)
            return replace(state, rows=rows, same=_same(pieces, rows.tolist(), state.batch.ids))
        batch = _encoded(self.backbone, [p.row for p in pieces], self.eos)
        if self.floor is None or self.floor <= 0:
            return batch
        return self.backbone.enter(batch, self.floor, rows=rows)

    def logits(self, what: Batch | PrefixState | None = None) -> Tensor:
        """[B, 1 + M, V] of all rows (or of `edits`) with what is applied; row b asks its case."""
        state = self.state if what is None else what
        if isinstance(state, PrefixState):
            return self.backbone.logits(state)
        assert what is None or what is self.edits
        everyone = torch.arange(len(self.cases), device=self.of_case.device)
        return self.backbone.logits(state, rows=self.of_case if what is None else everyone)

    def losses(self, logits: Tensor) -> dict[str, Tensor]:
        """The three losses of logits [B, >= M, V] over all rows, roles without a row left out.

        `reliability` and `generality`: mean negative log-likelihood of the targets; `locality`: KL
        from the unedited model's distribution at the answer's positions. `reliability_right`,
        `generality_right`, `locality_kept`: share of rows with every token right, or unchanged;
        not trained on.
        """
        batch = self.state if isinstance(self.state, Batch) else self.state.batch
        nll_B, right_B = target_loss(logits, batch)
        out: dict[str, Tensor] = {}
        for role in ROLES[:2]:
            index = self.index(role)
            if index:
                out[role] = nll_B[index].mean()
                out[f"{role}_right"] = right_B[index].float().mean()
        index = self.index("locality")
        if index:
            out["locality"], out["locality_kept"] = self._kept(logits, index)
        return out

    def _kept(self, logits: Tensor, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(mean KL(unedited || edited), share of rows whose argmax stays) of locality rows."""
        lost, kept = [], []
        for i in index:
            before = self.pieces[i].unedited
            assert before is not None
            before = before.to(logits.device)
            now = logits[i, : before.shape[0]]
            old = before.log_softmax(-1)
            lost.append((old.exp() * (old - now.log_softmax(-1))).sum(-1).mean())
            kept.append((now.argmax(-1) == before.argmax(-1)).all().float())
        return torch.stack(lost).mean(), torch.stack(kept).mean()


def _encoded(backbone: Backbone, rows: Sequence[TrainExample], eos: bool) -> Batch:
    return backbone.encode(
        [r.prompt for r in rows], [r.target for r in rows], eos=eos, rows=[0] * len(rows)
    )


def _pieces(
    rows: Sequence[TrainExample], batch: Batch, state: PrefixState | None
) -> tuple[CachedExample, ...]:
    """Each row of a batch on its own; without streams where the trunk's keywords are unknown."""
    sizes = batch.mask.sum(1).tolist()
    extras = None if state is None else _split(state, sizes)
    pieces = []
    for b, row in enumerate(rows):
        t = int(sizes[b])
        piece = CachedExample(
            row, batch.ids[b, :t].clone(), batch.vision[b, :t].clone(), int(batch.lengths[b]),
            batch.targets[b],
        )  # fmt: skip
        if state is not None and extras is not None:
            assert state.stream is not None
            piece = replace(piece, stream=state.stream[b, :t].clone(), extras=extras[b])
        pieces.append(piece)
    return tuple(pieces)


def _split(state: PrefixState, sizes: Sequence[int]) -> list[dict[str, Any]] | None:
    """Keywords of the text model's forward per row; None where one of them cannot be cut.

    A keyword is (how, value): `columns` [t, ...], `axes` [k, t], `image` [tokens of images, ...],
    or `same` for what is no tensor. Ids, embeddings and mask are not among them: behind the trunk
    only their shapes matter.
    """
    batch, stream = state.batch, state.stream
    assert stream is not None
    embeds, mask = state.trunk.get("inputs_embeds"), state.trunk.get("attention_mask")
    if isinstance(embeds, Tensor) and embeds.shape != stream.shape:
        return None
    if not (isinstance(mask, Tensor) and torch.equal(mask.long(), batch.mask.long())):
        return None
    images = batch.vision.sum(1).tolist()
    out: list[dict[str, Any]] = [{} for _ in sizes]
    for name, value in state.trunk.items():
        if name in _REBUILT:
            continue
        for b, t in enumerate(sizes):
            cut = _cut(value, b, int(t), batch, images)
            if cut is None:
                return None
            out[b][name] = cut
    return out


def _cut(value: Any, b: int, t: int, batch: Batch, images: Sequence[int]) -> Any:
    """One keyword of row b, or None."""
    rows, columns = batch.ids.shape
    if not _tensors(value):
        return ("same", value)
    if isinstance(value, (list, tuple)):
        if any(v.shape[0] != sum(images) for v in value):
            return None
        start = sum(images[:b])
        return ("image", [v[start : start + images[b]].clone() for v in value])
    if value.dim() == 3 and value.shape[2] == columns and value.shape[1] in (1, rows):
        return ("axes", value[:, b if value.shape[1] == rows else 0, :t].clone())
    if value.dim() >= 2 and value.shape[1] == columns and value.shape[0] in (1, rows):
        return ("columns", value[b if value.shape[0] == rows else 0, :t].clone())
    return None


def _put_together(pieces: Sequence[CachedExample], floor: int) -> PrefixState:
    """Rows of different pools as one right-padded batch at block `floor`."""
    sizes = [len(p.ids) for p in pieces]
    stream = _padded([p.stream for p in pieces])
    assert stream is not None
    ids = _padded([p.ids for p in pieces])
    vision = _padded([p.vision for p in pieces])
    device = ids.device
    mask = torch.arange(max(sizes), device=device) < torch.tensor(sizes, device=device)[:, None]
    trunk: dict[str, Any] = {"inputs_embeds": stream, "attention_mask": mask.long()}
    for name in dict.fromkeys(n for p in pieces for n in p.extras):
        given = next(p.extras[name] for p in pieces if name in p.extras)
        trunk[name] = _joined(name, given, pieces)
    batch = Batch(
        prompts=tuple(p.row.prompt for p in pieces),
        inputs={"input_ids": ids, "attention_mask": mask.long()},
        lengths=torch.tensor([p.length for p in pieces], device=device),
        vision=vision,
        image_rows=torch.zeros(0, dtype=torch.long),
        image_sizes=torch.zeros(0, dtype=torch.long),
        targets=tuple(p.target for p in pieces),
    )
    return PrefixState(batch, floor, trunk=trunk, stream=stream)


def _same(pieces: Sequence[CachedExample], of_case: Sequence[int], ids_BT: Tensor) -> Tensor | None:
    """`PrefixState.same`: questions of one case that begin with the same pictures."""
    rows, columns = ids_BT.shape
    same = torch.arange(rows * columns, device=ids_BT.device).view(rows, columns)
    first: dict[tuple[Any, ...], int] = {}
    found = False
    for b, piece in enumerate(pieces):
        image = piece.vision.nonzero()
        end = int(image[-1]) + 1 if len(image) else 0
        if not end:
            continue
        key = (of_case[b], piece.row.prompt.images, tuple(piece.ids[:end].tolist()))
        if (twin := first.setdefault(key, b)) != b:
            same[b, :end] = same[twin, :end]
            found = True
    return same if found else None


def _joined(name: str, given: tuple[str, Any], pieces: Sequence[CachedExample]) -> Any:
    """One keyword for all rows; a pool without images may lack it, its positions then count up."""
    how, like = given
    if how == "same":
        return like
    if how == "image":
        have = [p.extras[name][1] for p in pieces if name in p.extras]
        return [torch.cat(parts) for parts in zip(*have, strict=True)]
    values = []
    for p in pieces:
        t = len(p.ids)
        if name in p.extras:
            value = p.extras[name][1]
        elif name == "position_ids":
            value = torch.arange(t, device=like.device).expand(*like.shape[:-1], t)
        else:
            value = like.new_zeros((t, *like.shape[1:]))
        values.append(value.transpose(0, 1) if how == "axes" else value)
    joined = _padded(values)
    return joined.permute(2, 0, 1) if how == "axes" else joined


def _padded(values: Sequence[Any]) -> Tensor:
    """[t, ...] each, as [B, T, ...] with zeros behind."""
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, Tensor)]
