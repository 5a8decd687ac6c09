"""Which columns of what the generator is given belong to which tokens of the text model.

A pipeline drops the rows of its template, pads, or puts hidden states of several blocks side by
side. Columns are matched by their values.

Shapes: T tokens of the text model's call, C columns of the conditioning, d width of the text model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.core.errors import BadEdit

#: cosine from which a column is a token's
_SAME = 0.9999


def token_of(cond_CD: Tensor, states: Sequence[Tensor]) -> Tensor:
    """[C] the token of each column, -1 for none. states [T, d]: what a block or the norm gave."""
    best = torch.full((cond_CD.shape[0],), -1)
    score = torch.full((cond_CD.shape[0],), _SAME)
    for state_Td in states:
        d = state_Td.shape[1]
        if cond_CD.shape[1] % d:
            continue
        unit_dT = torch.nn.functional.normalize(state_Td.double(), dim=1).T
        for part_Cd in torch.split(cond_CD.double(), d, dim=1):
            cosine = torch.nn.functional.normalize(part_Cd, dim=1) @ unit_dT
            # a column of zeros is padding that was cleared
            value, index = torch.where(cosine.isfinite(), cosine, -1.0).max(1)
            better = value > score
            best, score = torch.where(better, index, best), torch.where(better, value, score)
    return best


def once(tokens_C: Tensor) -> Tensor:
    """The same with -1 for all columns of a token but the first: padding may repeat one."""
    seen: set[int] = set()
    out = tokens_C.clone()
    for column, token in enumerate(tokens_C.tolist()):
        if token in seen:
            out[column] = -1
        seen.add(token)
    return out


def tokens_of_span(
    tokenizer: Any, ids: Sequence[int], real: Sequence[bool], span: str
) -> list[int]:
    """The tokens that hold the last mention of `span`. Raises BadEdit."""
    kept = [i for i, r in enumerate(real) if r]
    texts = [
        str(tokenizer.decode([ids[i] for i in kept[:n]], skip_special_tokens=False))
        for n in range(len(kept) + 1)
    ]
    start = texts[-1].rfind(span)
    if start < 0 or not span:
        raise BadEdit(
            f"the subject '{span[:60]}' is not in the prompt that is drawn. Give it as it is "
            "written there."
        )
    end = start + len(span)
    return [
        kept[n] for n in range(len(kept))
        if len(texts[n]) < end and len(texts[n + 1]) > start
    ]  # fmt: skip
