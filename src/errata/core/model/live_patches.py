"""What runs when patches are live: frozen patches of one shape act as one.

They are merged one after the other, in their order. What comes out depends on these patches alone,
bit for bit, and not on what was live before: without one of them the others act as if it had never
been there. A stack keeps what its parts came to, so that one more patch costs one merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from errata.core.hooks.hook import Hook, flat, flat_on_row
from errata.core.patch import Patch, settled, trainable, united


@dataclass(frozen=True, eq=False)
class Folded:
    """Frozen patches of one shape, in their order, and what they come to: mostly one patch.

    tensors: of the patches. state: of these tensors, which nobody should change any more.
    """

    patches: tuple[Patch, ...] = ()
    totals: tuple[Patch, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    state: object = None

    def of(self, patches: Sequence[Patch]) -> Folded:
        """The same of `patches`; those that this one begins with are not merged again."""
        known = len(self.patches)
        same = known <= len(patches) and all(
            a is b for a, b in zip(self.patches, patches, strict=False)
        )
        if known and (not same or self.state != _state(self.tensors)):
            return Folded().of(patches)
        if known == len(patches):
            return self
        totals, tensors = list(self.totals), [*self.tensors]
        for patch in patches[known:]:
            both = type(patch).merge([totals[-1], patch]) if totals else None
            totals = [*totals, patch] if both is None else [*totals[:-1], both]
            tensors += [*patch.parameters(), *patch.buffers()]
        return Folded(tuple(patches), tuple(totals), tuple(tensors), _state(tensors))


def _state(tensors: Sequence[Tensor]) -> object:
    """Another one after a tensor was written to or moved."""
    return sum(t._version for t in tensors), {t.device for t in tensors}


def _merged(
    hooks: Iterable[Hook], known: Mapping[type[Hook], Folded] | None = None
) -> tuple[list[Hook], dict[type[Hook], Folded]]:
    """(the same hooks, stacks flattened, frozen patches of one shape merged to save work; how).

    known: how earlier ones were merged, to go on from.
    """
    known = known or {}
    frozen = {id(p) for folded in known.values() for p in folded.patches}
    groups: dict[type[Hook], list[Hook]] = {}
    in_training: list[Hook] = []
    for hook in flat(hooks):
        if id(hook) not in frozen and trainable(hook):
            in_training.append(hook)
        else:
            groups.setdefault(type(hook), []).append(hook)
    out: list[Hook] = []
    how: dict[type[Hook], Folded] = {}
    for kind, group in groups.items():
        patches = [h for h in group if isinstance(h, Patch) and not h.one_when_live]
        if len(patches) > 1:
            how[kind] = known.get(kind, Folded()).of(patches)
            out += how[kind].totals
        else:
            out += group
    return [*out, *in_training], how


def live_hooks(stack: Iterable[Hook]) -> list[Hook]:
    """The merged hooks that run at the sites when `stack` is applied."""
    stack = list(stack)
    known = next((h.folded for h in stack if isinstance(h, Patch) and h.folded is not None), None)
    parts = united(h for h in settled(stack) if h.sites)
    out, how = _merged(united(h for part in parts for h in part.acting()), known)
    if known is not None and len(stack) == 1 and isinstance(stack[0], Patch):
        stack[0].folded = how
    return out


def rewriting(stack: Sequence[Hook], row: int) -> list[Patch]:
    """The patches that rewrite the prompts of a row, merged."""
    if not any(hook.rewrites for hook in stack):
        return []
    live = united(settled(flat_on_row(stack, row)))
    return [p for p in live if isinstance(p, Patch) and p.rewrites]
