"""A patch: an edit as data, a hook that can be saved.

A patch holds no reference to a model. Its tensors are keyed by site names, it is refused by a model
with another fingerprint, and it is undone by no longer being applied. The shapes of patches are in
`errata.patches`, one file each; `errata.io.patch_folder` saves and loads them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from errata.core import registry
from errata.core.errors import FingerprintMismatch
from errata.core.formats.counts import counted
from errata.core.formats.pretrained import Pretrained
from errata.core.hooks.hook import Hook, flat
from errata.core.text import normalise
from errata.core.types import Edit, Image, Prompt, digest, to_json

P = TypeVar("P", bound="Patch")


@dataclass(frozen=True, slots=True)
class Header:
    """Where a patch comes from: editor and arguments, and the model that it was made for.

    arguments: the preset and what was passed. config: every setting that the edit was made with,
    defaults and presets included; empty in patches of errata before 0.2. state: hash of the
    prepared state that the editor worked from. dtype: of the model. notes: of the editor; also
    `on_top_of`, the origins of the patches that were live when it was found, and `origins`, those
    of the patches that it was merged from.
    """

    editor: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    revision: str = ""
    fingerprint: str = ""
    dtype: str = ""
    state: str = ""
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def style(self) -> str:
        """How the prompts were written that it was made with; "" if that is not known."""
        return str(self.notes.get("style") or "")


class PromptEncoder(Protocol):
    """What `Patch.rewrite` may use of a backbone; no patch is live in these methods."""

    name: str

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""

    @property
    def width(self) -> int:
        """Size of the hidden states."""

    def prompt_length(self, prompt: Prompt) -> int:
        """Tokens of a prompt. Raises TooLong."""

    def embed(self, prompts: Sequence[Prompt], *, images: bool = False) -> Tensor:
        """[n, d] unit vectors of prompts, from their text or from their images."""


class Patch(Pretrained, Hook, nn.Module, ABC):
    """An edit as data. Subclasses are the shapes in `errata.patches`, one file each.

    one_when_live: patches of this shape that are live together must act as one (a shared memory,
    facts in one prompt), so that a stack merges them at once. Other shapes may be merged while they
    are live, which only saves work. dropped: demonstrations that did not fit into the prompts that
    it has rewritten so far. folded: of a stack, what its parts came to when they were last live
    (`errata.core.model.live_patches`); None in others.
    """

    plugin_kind: ClassVar[str] = "patches"
    one_when_live: ClassVar[bool] = False
    dropped: int = 0
    folded: Mapping[type[Hook], Any] | None = None

    def __init__(self, sites: Iterable[str] = ()) -> None:
        nn.Module.__init__(self)
        Hook.__init__(self, sites)
        self.header = Header()
        self.edits: tuple[Edit, ...] = ()
        self._origins: frozenset[str] | None = None
        self._asked: tuple[tuple[Edit, ...], tuple[tuple[Any, ...], ...]] = (), ()

    @property
    def asked(self) -> tuple[tuple[Any, ...], ...]:
        """Per edit the keys of its question: prompts that ask the same have one in common."""
        if self._asked[0] is not self.edits:
            self._asked = self.edits, tuple(_keys(e.prompt) for e in self.edits)
        return self._asked[1]

    @property
    def origins(self) -> frozenset[str]:
        """A short hash of header and edits: the same for all parts of one edit.

        A patch that was merged from several has the hashes of all of them.
        """
        if self._origins is None:
            header = asdict(replace(self.header, notes={}))  # notes may name a thousand others
            self._origins = origins_of({**header, "notes": self.header.notes}, self.edits)
        return self._origins

    @property
    def on_top_of(self) -> frozenset[str]:
        """The origins of the patches that were live when this one was found."""
        return frozenset(self.header.notes.get("on_top_of", ()))

    def keep(self, index: Sequence[int]) -> Self | None:
        """The same patch with only these of its edits; None if they cannot be told apart."""
        return None

    def __repr__(self) -> str:
        numbers = sum(t.numel() for t in (*self.parameters(), *self.buffers()))
        facts = [
            f"editor {self.header.editor!r}" if self.header.editor else "no editor",
            f"for {self.header.backbone!r}" if self.header.backbone else "for no model yet",
            counted(len(self.edits), "edit"),
            f"{numbers:,} numbers at {', '.join(sorted(self.sites)[:3]) or 'no site'}"
            + (f" and {len(self.sites) - 3} more sites" if len(self.sites) > 3 else ""),
        ]
        return f"{type(self).__name__}({', '.join(facts)})"

    def rewrite(self, prompt: Prompt, model: PromptEncoder, row: int = 0) -> Prompt:
        """The prompt that the model gets instead. Depends on the prompt alone."""
        return prompt

    @property
    def pictures(self) -> tuple[Image, ...]:
        """Images that it shows to the model: without them it cannot act."""
        return ()

    @property
    def rewrites(self) -> bool:
        return type(self).rewrite is not Patch.rewrite

    @abstractmethod
    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON-ready settings, tensors keyed by `<site>/<name>`)."""

    @classmethod
    @abstractmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `pack`."""

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """One patch that does what these do one after the other; None if there is none."""
        return None

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        """One row patch whose row i does what patch i does; None if there is none.

        Row patches among them contribute their rows, in order.
        """
        return None

    def between(self, below: Sequence[Patch], above: Sequence[Patch]) -> Patch:
        """Of a row patch: the same with these patches in each row, below and above its own."""
        raise NotImplementedError

    def with_header(self, header: Header, edits: Sequence[Edit]) -> Self:
        self.header = header
        self.edits = tuple(edits)
        self._origins = None
        return self

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        """Moves the tensors to the devices of their sites; they stay float32."""
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            device = device_of(self.site_of(name))
            if tensor.device != device:
                tensor.data = tensor.data.to(device)

    def site_of(self, tensor: str) -> str:
        """The site that a parameter or buffer of this module belongs to ("" = the text model)."""
        return ""


def parts_of(patch: Patch) -> list[Patch]:
    """The single patches that a stack consists of, in order; any other patch itself."""
    return [p for p in flat([patch]) if isinstance(p, Patch)]


# -- patches that are live together ---------------------------------------------------------------


def united(hooks: Iterable[Hook], *, to_keep: bool = False) -> list[Hook]:
    """The same hooks, stacks flattened; patches that must act as one are merged.

    to_keep: for a stack that is kept. Patches for one question that were found apart then stay
    apart, so that `settled` finds the later one when they are live.
    """
    out: list[Hook] = []
    places: dict[type[Hook], list[int]] = {}  # in `out`, of those that may be merged
    for hook in flat(hooks):
        alike = places.setdefault(type(hook), []) if _one_when_live(hook) else []
        for i in alike:
            both = _united(out[i], hook, to_keep)
            if both is not None:
                out[i] = both
                break
        else:
            alike.append(len(out))
            out.append(hook)
    return out


def _one_when_live(hook: Hook) -> bool:
    return isinstance(hook, Patch) and hook.one_when_live


def _united(a: Hook, b: Hook, to_keep: bool) -> Patch | None:
    """Both merged; None unless they are frozen, and for one model. Both are of one shape."""
    assert isinstance(a, Patch) and isinstance(b, Patch)
    if len({a.header.fingerprint, b.header.fingerprint} - {""}) > 1 or trainable(a) or trainable(b):
        return None
    if to_keep and _edited_again([a, b]):
        return None
    return type(a).merge([a, b])


def inherit(merged: P, patches: Sequence[Patch]) -> P:
    """The merged patch with the header and all edits of the patches that it was made from."""
    header = common_header(patches)
    origins = frozenset[str]().union(*(p.origins for p in patches))
    if len(origins) > 1:
        below = frozenset[str]().union(*(p.on_top_of for p in patches)) - origins
        notes = {k: v for k, v in header.notes.items() if k != "on_top_of"}
        if below:
            notes["on_top_of"] = sorted(below)
        header = replace(header, notes={**notes, "origins": sorted(origins)})
    merged.with_header(header, [e for p in patches for e in p.edits])
    merged._asked = merged.edits, tuple(keys for p in patches for keys in p.asked)
    return merged


def trainable(hook: Hook) -> bool:
    """Whether the hook's parameters are still being trained."""
    return isinstance(hook, Patch) and any(p.requires_grad for p in hook.parameters())


# -- several patches for one question -----------------------------------------------------------


def settled(hooks: Iterable[Hook]) -> list[Hook]:
    """The same hooks, stacks flattened, without edits that a later patch contradicts.

    A patch whose questions all get another answer by later patches is left out. Of others the edit
    alone is left out, where the patch can be cut (`Patch.keep`). A later patch that was found on
    top of an earlier one needs it, so that both stay. What a row contradicts, or what contradicts a
    row, is settled in that row.
    """
    all_hooks = _in_rows(flat(hooks))
    again = _edited_again(all_hooks)
    if not again:
        return all_hooks
    out: list[Hook] = []
    for i, hook in enumerate(all_hooks):
        lost = again.get(i)
        if lost is None or not isinstance(hook, Patch):
            out.append(hook)
        elif len(lost) < len(hook.edits):
            rest = [n for n in range(len(hook.edits)) if n not in lost]
            out.append(hook.keep(rest) or hook)
    return out


def _in_rows(hooks: list[Hook]) -> list[Hook]:
    """The same hooks; a patch and a row patch that contradict each other become one row patch."""
    at = next((i for i, h in enumerate(hooks) if h.rows is not None and h.members()), None)
    if at is None:
        return hooks
    rows = hooks[at]
    below = [h for h in hooks[:at] if _contradict(h, rows)]
    above = [h for h in hooks[at + 1 :] if _contradict(h, rows)]
    if not isinstance(rows, Patch) or not (below or above):
        return hooks
    moved = rows.between(
        [h for h in below if isinstance(h, Patch)], [h for h in above if isinstance(h, Patch)]
    )
    away = {id(h) for h in (*below, *above)}
    return [moved if h is rows else h for h in hooks if id(h) not in away]


def _contradict(hook: Hook, rows: Hook) -> bool:
    """Whether a patch and a row of a row patch give a question two answers."""
    if not isinstance(hook, Patch) or hook.rows is not None or not hook.edits or trainable(hook):
        return False
    texts = {e.prompt.text for e in hook.edits}
    members = [m for m in rows.members() or () if isinstance(m, Patch)]
    alike = [m for m in members if texts & {e.prompt.text for e in m.edits}]
    return any(_edited_again([hook, p]) for m in alike for p in parts_of(m))


def remarks(stack: Iterable[Hook], added: Iterable[Hook]) -> list[str]:
    """What the user should know about `added` patches in a stack, a line each.

    A patch that was found on top of one that is not there, and edits of one question that
    contradict each other and cannot be told apart.
    """
    new = [p for p in flat(added) if isinstance(p, Patch) and p.edits and p.rows is None]
    if not new:
        return []
    all_hooks = flat(stack)
    there = {o for p in all_hooks if isinstance(p, Patch) and p.edits for o in p.origins}
    missing = {o: p for p in new for o in p.on_top_of - there}
    lines = [
        f"the patch of '{p.edits[0].prompt.text[:60]}' was found on top of patch {origin}, which "
        "is not applied: its answers may differ from those it was made for."
        for origin, p in missing.items()
    ]
    for i, lost in _edited_again(all_hooks).items():
        earlier = all_hooks[i]
        assert isinstance(earlier, Patch)
        rest = [k for k in range(len(earlier.edits)) if k not in lost]
        for n, later in lost.items():
            edit = earlier.edits[n]
            if rest and earlier.keep(rest) is None:
                lines.append(
                    f"two patches answer '{edit.prompt.text[:60]}' with '{edit.target[:60]}' and "
                    f"'{later.target[:60]}', and the first holds other edits too, so that both "
                    "act. Make the later edit on top of the first: errata edit --patch."
                )
    return lines


def tops(stack: Iterable[Hook]) -> frozenset[str]:
    """The origins of the live patches that no other live patch was found on top of."""
    patches = [p for p in flat(stack) if isinstance(p, Patch) and p.edits]
    return frozenset(o for p in patches for o in p.origins) - frozenset(
        o for p in patches for o in p.on_top_of
    )


def same_prompt(a: Prompt, b: Prompt) -> bool:
    """Whether two prompts ask the same of the same pictures."""
    if len(a.segments) != len(b.segments) or a.history != b.history:
        return False
    return all(_same_segment(x, y) for x, y in zip(a.segments, b.segments, strict=True))


def _same_segment(a: str | Image, b: str | Image) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    if a.sha256 is not None and b.sha256 is not None:
        return a.sha256 == b.sha256
    return a.uri == b.uri


def _keys(prompt: Prompt) -> tuple[Any, ...]:
    """Keys of a prompt: two that are the same (`same_prompt`) have one of them in common."""
    text, images = prompt.text, prompt.images
    if len(images) != 1:
        return (text,)
    image = images[0]
    known = () if image.sha256 is None else ((text, "sha256", image.sha256),)
    return ((text, "uri", image.uri), *known)


def _edited_again(hooks: Sequence[Hook]) -> dict[int, dict[int, Edit]]:
    """Index of a patch -> index of an edit -> the later edit that gives its question another
    answer, in a patch that was found apart from it.
    """
    patches = [(i, h) for i, h in enumerate(hooks) if h.rows is None and isinstance(h, Patch)]
    if sum(bool(p.edits) for _, p in patches) < 2:
        return {}
    by_key: dict[Any, list[tuple[int, int, Edit]]] = {}
    most = max(patches, key=lambda one: len(one[1].edits))[1]
    shared = {key for _, p in patches if p is not most for keys in p.asked for key in keys}
    for i, patch in patches:
        for n, keys in enumerate(patch.asked):
            for key in filter(shared.__contains__, keys):
                by_key.setdefault(key, []).append((i, n, patch.edits[n]))
    again: dict[int, dict[int, Edit]] = {}
    below: dict[str, frozenset[str]] | None = None
    for places in by_key.values():
        if len(places) < 2:
            continue
        ends = {i: at + 1 for at, (i, _, _) in enumerate(places)}  # a patch's lie side by side
        for i, n, edit in places:
            for j, _, later in places[ends[i] :]:
                if edit is later or not same_prompt(edit.prompt, later.prompt):
                    continue
                a, b = hooks[i], hooks[j]
                if normalise(edit.target) == normalise(later.target):
                    continue
                assert isinstance(a, Patch) and isinstance(b, Patch)
                if below is None:
                    below = {o: p.on_top_of for p in hooks if isinstance(p, Patch)
                             for o in p.origins}  # fmt: skip
                if not a.origins & (b.origins | _below(b.on_top_of, below)):
                    again.setdefault(i, {})[n] = later
    return again


def _below(origins: frozenset[str], below: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """These origins, and all that their patches were found on top of."""
    seen: set[str] = set()
    left = set(origins)
    while left:
        seen |= left
        left = {o for one in left for o in below.get(one, ())} - seen
    return frozenset(seen)


def origins_of(header: Mapping[str, Any], edits: Sequence[Edit]) -> frozenset[str]:
    """`Patch.origins`, from the header as plain data and the edits."""
    notes = header.get("notes", {})
    if notes.get("origins"):
        return frozenset(notes["origins"])
    same = {k: v for k, v in header.items() if k not in ("created", "versions", "notes")}
    below = sorted(notes.get("on_top_of", ()))
    return frozenset([digest([same, below, [to_json(e) for e in edits]])[:16]])


# -- which model a patch was made for -------------------------------------------------------------


def common_header(patches: Sequence[Patch]) -> Header:
    """The first header that names a model; the parts of a combination keep their own."""
    first = patches[0].header if patches else Header()
    return next((p.header for p in patches if p.header.fingerprint), first)


def parts_below(patch: Patch) -> Iterator[Patch]:
    """The patch itself, and all patches that it is made of."""
    yield patch
    for member in patch.members() or ():
        if isinstance(member, Patch):
            yield from parts_below(member)


def pictures_of(patch: Patch) -> Iterator[Image]:
    """The images that the patch or a part of it shows to the model."""
    for part in parts_below(patch):
        yield from part.pictures


class Identified(Protocol):
    """What `check_fingerprint` asks of a backbone."""

    name: str

    def fingerprint(self) -> str:
        """The model's fingerprint."""

    def as_loaded(self) -> bool:
        """Whether the model is as it was when it was loaded."""

    def identified_by(self, fingerprint: str) -> bool:
        """Whether a fingerprint, of this errata or of an older one, is that of this model."""


def check_fingerprint(header: Header, model: Identified, what: object) -> None:
    """Raises FingerprintMismatch if `header` names another model than `model`."""
    if header.fingerprint and not model.identified_by(header.fingerprint):
        changed = "" if model.as_loaded() else ", which was changed after it was loaded"
        raise FingerprintMismatch(
            f"{what} was made for {header.backbone} ({header.fingerprint[:12]}), "
            f"not for {model.name} ({model.fingerprint()[:12]}){changed}. "
            "Make the edit again on this model with `errata edit`."
        )


# -- as data --------------------------------------------------------------------------------------


def shape_of(patch: Patch) -> str:
    """The registry name of the patch's shape."""
    return type(patch).__module__.rsplit(".", 1)[1]


def pack(patch: Patch) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`pack` of any shape, with the name of the shape, so that `unpack` finds it again."""
    settings, tensors = patch.pack()
    return {"shape": shape_of(patch), **settings}, tensors


def unpack(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    """The inverse of `pack`. Raises UnknownName for a shape that is not installed."""
    cls = registry.load("patches", str(settings.get("shape", "")))
    return cls.unpack(settings, tensors)  # type: ignore[no-any-return]
