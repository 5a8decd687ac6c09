"""Prefixes by row: splits a `PrefixState` into rows, and concatenates rows of several states.

The text model's forward takes more than ids and hidden states (positions, one or three per column;
per-image features that are added between blocks). Each keyword is cut to a row by its shape, and
the kind of the cut says how rows are joined again. Keywords of which only the shape matters above
the entered block are not kept.

Shapes: B rows, T columns, t columns of one row, d stream width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from errata.backbones._text_blocks import cross
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.batch import Batch, PrefixRow, PrefixState

#: rebuilt from the rows' hidden states and lengths
_REBUILT = ("input_ids", "inputs_embeds", "attention_mask")


class _Keyword(NamedTuple):
    """One keyword of the forward, cut to a row.

    `columns` [t, ...]; `axes` [k, t]; `image`: a list of [image tokens, ...]; `same`: no tensor.
    """

    how: Literal["columns", "axes", "image", "same"]
    value: Any


def split(state: PrefixState) -> list[PrefixRow] | None:
    """The rows of a state without padding; None if a keyword of the forward cannot be cut."""
    batch, stream = state.batch, state.stream
    if stream is None:
        return None
    sizes = [int(t) for t in batch.mask.sum(1).tolist()]
    keywords = _keywords(state, stream, sizes)
    if keywords is None:
        return None
    return [
        PrefixRow(
            batch.prompts[b], batch.targets[b], int(batch.lengths[b]), batch.ids[b, :t].clone(),
            batch.vision[b, :t].clone(), state.layer, stream[b, :t].clone(), keywords[b],
        )
        for b, t in enumerate(sizes)
    ]  # fmt: skip


def _keywords(
    state: PrefixState, stream: Tensor, sizes: Sequence[int]
) -> list[dict[str, Any]] | None:
    """The keywords of each row, or None."""
    batch = state.batch
    if cross.STATES in state.trunk:
        return None
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
            keyword = _cut(value, b, t, batch, images)
            if keyword is None:
                return None
            out[b][name] = keyword
    return out


def _cut(value: Any, b: int, t: int, batch: Batch, images: Sequence[int]) -> _Keyword | None:
    """One keyword of row b, or None. images: image tokens of each row."""
    rows, columns = batch.ids.shape
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        if any(v.shape[0] != sum(images) for v in value):
            return None
        start = sum(images[:b])
        return _Keyword("image", [v[start : start + images[b]].clone() for v in value])
    if not isinstance(value, Tensor):
        return _Keyword("same", value)
    if value.dim() == 3 and value.shape[2] == columns and value.shape[1] in (1, rows):
        return _Keyword("axes", value[:, b if value.shape[1] == rows else 0, :t].clone())
    if value.dim() >= 2 and value.shape[1] == columns and value.shape[0] in (1, rows):
        return _Keyword("columns", value[b if value.shape[0] == rows else 0, :t].clone())
    return None


def concat(rows: Sequence[PrefixRow], owners: Tensor, *, shared: bool = True) -> PrefixState:
    """Rows that enter one block, as a right-padded state; `owners` [B] become its `rows`.

    shared: rows that begin with the same images and tokens have the same hidden states there.
    """
    (layer,) = {r.layer for r in rows}
    sizes = [len(r.ids) for r in rows]
    stream, ids = _padded([r.stream for r in rows]), _padded([r.ids for r in rows])
    device = ids.device
    mask = torch.arange(max(sizes), device=device) < torch.tensor(sizes, device=device)[:, None]
    trunk: dict[str, Any] = {"inputs_embeds": stream, "attention_mask": mask.long()}
    for name in dict.fromkeys(n for r in rows for n in r.keywords):
        trunk[name] = _joined(name, rows)
    batch = Batch(
        prompts=tuple(r.prompt for r in rows),
        inputs={"input_ids": ids, "attention_mask": mask.long()},
        lengths=torch.tensor([r.length for r in rows], device=device),
        vision=_padded([r.vision for r in rows]),
        image_rows=torch.zeros(0, dtype=torch.long),
        image_sizes=torch.zeros(0, dtype=torch.long),
        targets=tuple(r.target for r in rows),
    )
    same = identical_columns(rows, owners.tolist(), ids) if shared else None
    return PrefixState(batch, layer, trunk=trunk, stream=stream, rows=owners, same=same)


def identical_columns(
    rows: Sequence[PrefixRow], owners: Sequence[int], ids_BT: Tensor
) -> Tensor | None:
    """`PrefixState.same`: rows of one owner that begin with the same images and tokens."""
    count, columns = ids_BT.shape
    same = torch.arange(count * columns, device=ids_BT.device).view(count, columns)
    first: dict[tuple[Any, ...], int] = {}
    shared = False
    for b, row in enumerate(rows):
        image = row.vision.nonzero()
        end = int(image[-1]) + 1 if len(image) else 0
        if not end:
            continue
        key = (owners[b], row.prompt.images, tuple(row.ids[:end].tolist()))
        if (earlier := first.setdefault(key, b)) != b:
            same[b, :end] = same[earlier, :end]
            shared = True
    return same if shared else None


def _joined(name: str, rows: Sequence[PrefixRow]) -> Any:
    """One keyword for all rows; a row of a batch without images may lack it."""
    how, like = next(r.keywords[name] for r in rows if name in r.keywords)
    if how == "same":
        return like
    if how == "image":
        images = [r.keywords[name].value for r in rows if name in r.keywords]
        return [torch.cat(parts) for parts in zip(*images, strict=True)]
    values = []
    for r in rows:
        t = len(r.ids)
        if name in r.keywords:
            value = r.keywords[name].value
        elif name == "position_ids":
            value = torch.arange(t, device=like.device).expand(*like.shape[:-1], t)
        else:
            value = like.new_zeros((t, *like.shape[1:]))
        values.append(value.transpose(0, 1) if how == "axes" else value)
    joined = _padded(values)
    return joined.permute(2, 0, 1) if how == "axes" else joined


def _padded(values: Sequence[Tensor]) -> Tensor:
    """[t, ...] each, as [B, T, ...], right padded with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


# -- one prefix for all questions about a picture --------------------------------------------------


class SharedPrefix(NamedTuple):
    """Rows that begin alike: their first `columns` columns run once for each of G groups.

    first [G]: a row of each group. group [B]: the group of each row.
    """

    columns: int
    first: Tensor
    group: Tensor


def shared_prefix(batch: Batch, rows: Tensor | None, hooks: Sequence[Hook]) -> SharedPrefix | None:
    """The pictures that several rows of one patch ask about, up to their last image token.

    rows [B]: the patch row of each. hooks: those that are live. None where a hook reads whole rows,
    where no picture is asked about twice, or where the pictures end at different columns.
    """
    if not all(h.pointwise or not h.sites for h in hooks):
        return None
    ids, lengths = batch.ids, batch.lengths.tolist()
    of_patch = range(len(lengths)) if rows is None else rows.tolist()
    owners = of_patch if hooks else [0] * len(lengths)
    at = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    ends = (batch.vision * at).amax(1).tolist()
    end = min(ends[0], min(lengths) - 1)
    if end < 1 or any(min(e, n - 1) != end for e, n in zip(ends, lengths, strict=True)):
        return None
    pictures: list[list[str]] = [[] for _ in lengths]
    for row, key in zip(batch.image_rows.tolist(), batch.image_keys, strict=True):
        pictures[row].append(key)
    groups: dict[Any, int] = {}
    first: list[int] = []
    group: list[int] = []
    for b, row in enumerate(ids[:, :end].tolist()):
        same = (owners[b], *pictures[b], tuple(row))
        if same not in groups:
            groups[same] = len(first)
            first.append(b)
        group.append(groups[same])
    if len(first) == len(group):
        return None
    return SharedPrefix(
        end, torch.tensor(first, device=ids.device), torch.tensor(group, device=ids.device)
    )


def run_shared(
    run_text: Callable[..., Tensor],
    shared: SharedPrefix,
    batch: Batch,
    trunk: Mapping[str, Any],
    ctx: HookContext,
    cache: Any,
    columns: Tensor,
) -> Tensor:
    """[B, T, d] last hidden states, valid at `columns` [B, n], with the cache of all rows.

    run_text: of the backbone. trunk: keywords of the text model's forward over whole rows.
    """
    end, whole, first = shared.columns, batch.ids.shape[1], shared.first
    part = ctx.select(first)
    part.shape, part.mask = (len(first), end), batch.mask[first, :end]
    last = torch.full((len(first), 1), end - 1, device=batch.ids.device)
    run_text(_columns_of(trunk, slice(0, end), first), part, cache=cache, columns=last)
    cache.batch_select_indices(shared.group)
    ctx.shape = (batch.size, whole - end)
    rest = _columns_of(trunk, slice(end, whole), None)
    stream = run_text(rest, ctx, cache=cache, columns=columns - end)
    ctx.shape = (batch.size, whole)
    return torch.nn.functional.pad(stream, (0, 0, end, 0))


def _columns_of(trunk: Mapping[str, Any], columns: slice, rows: Tensor | None) -> dict[str, Any]:
    """The keywords of a text model's forward for some columns of some rows (None: of all)."""
    cut = dict(trunk)
    size = trunk["inputs_embeds"].shape[0]
    for name in ("inputs_embeds", "position_ids"):
        if not isinstance(value := trunk.get(name), Tensor):
            continue
        axes = name == "position_ids" and value.dim() == 3
        value = value[..., columns] if name == "position_ids" else value[:, columns]
        if rows is not None and value.shape[1 if axes else 0] == size:
            value = value[:, rows] if axes else value[rows]
        cut[name] = value
    mask = trunk["attention_mask"][:, : columns.stop]
    cut["attention_mask"] = mask if rows is None else mask[rows]
    return cut


def same_rows(a: Tensor | None, b: Tensor | None, size: int) -> bool:
    """Whether both name the same rows; None names row b for batch row b."""
    in_order = torch.arange(size)
    return torch.equal(*((in_order if r is None else r.cpu().long()) for r in (a, b)))
