"""Scope `oracle`: what the benchmark itself says. The upper bound of a scope, for benches alone.

A question belongs to an edit if it is a probe of that edit's case whose answer should become the
target, or the edit's own prompt. What follows from an edit (portability) has another answer than
the target: it belongs to the edit too, whatever the correction then says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from errata.scopes._hashes import EqualScope, padded, whole


class OracleScope(EqualScope):
    """The probes that the benchmark declares to be in scope, by their words and pictures."""

    name = "oracle"
    for_benches = True

    def __init__(self, state: State | None = None, **passed: Any) -> None:
        super().__init__(state, **passed)
        self.inside: dict[int, tuple[int, ...]] = {}

    def told(self, cases: Sequence[Case]) -> Self:
        known = type(self)(self.state, **self.passed)
        for case in cases:
            probes = [p.prompt for p in case.probes if p.kind_info.side == "target"]
            edit = whole(case.edit.prompt)
            more = (*known.inside.get(edit, (edit,)), *map(whole, probes))
            known.inside[edit] = tuple(dict.fromkeys(more))
        return known

    def _number(self, prompt: Prompt) -> int:
        return whole(prompt)

    def keys(self, backbone: Backbone, edits: Sequence[Edit]) -> Tensor:
        """[K, P] the numbers of all prompts in the scope of each edit, its own first."""
        rows = [self.inside.get(whole(e.prompt)) for e in edits]
        if unknown := [e for e, row in zip(edits, rows, strict=True) if row is None]:
            raise BadSpec(
                "scope 'oracle' knows the questions of a benchmark alone, and "
                f"'{unknown[0].prompt.text[:60]}' is none of them. Use it in errata bench, or "
                "choose another scope: errata list scopes."
            )
        return self.join([torch.tensor([row]) for row in rows])

    def join(self, keys: Sequence[Tensor]) -> Tensor:
        return padded(keys)

    def replaced(self, old: Tensor, new: Tensor) -> Tensor:
        return (old[:, :1] == new[:, 0]).any(1)
