"""Ports: how live patches reach a frozen model.

One permanent hook pair sits on every site of a model. It reads `port.live`, a tuple of patches that
`HookManager.switch` replaces; nothing is ever added to or taken from the model afterwards. That is
why a patch switched on late is seen by a compiled model, and why undoing an edit is dropping it
from a tuple.

A port shows its patches x as [B, T, n] and y as [B, T, o], whatever the module does: keyword
inputs, tuple outputs, flattened batches, a site whose input and output belong to two modules.

Shapes: B rows of a batch, T columns of the current forward, K columns of the whole question so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errata.core.errors import BadPatch, MissingMask
from errata.core.hooks.dedup import DedupBatch

if TYPE_CHECKING:
    from errata.core.patch import Patch


@dataclass(frozen=True, slots=True)
class Site:
    """Where a patch can act: the input of `first` and the output of `last` (mostly one module).

    With `last` None the site is the stream that enters `first` (`text.{i}.in`): x and y are the
    same. `stream` is `text` for modules that see [B, T, .], `vision` for those that see images,
    `draw` for those that draw them.
    """

    name: str
    first: nn.Module
    last: nn.Module | None
    stream: str = "text"


@dataclass(eq=False)
class HookContext:
    """What is fixed for the length of one question: a scoring forward, a `generate`, a drawing.

    lengths: [B] prompt length of each row, image tokens included; None when nothing said so.
    mask:    [B, K] 1 for real columns. vision: [B, K] True for image tokens of the prompt.
    rows:    [B] which row of a row patch each batch row uses; None = row b uses patch b.
    image_rows: [N] the batch row of each image, in the order in which the vision tower sees them,
    or in which they are drawn.
    image_sizes: [N] relative number of vision positions per image, for towers that flatten images.
    memo:    decisions, made once at prefill and read afterwards; keyed (id of patch, site).
    moment: the time of the running step of a drawing, 0 = noise, 1 = picture; None in text.
    rehearsing: a forward before the question's own, in which patches that decide higher up than
    they act decide, and change nothing.
    packed: which columns are known to be equal, while these are run once.
    """

    hooks: HookManager
    lengths: Tensor | None = None
    mask: Tensor | None = None
    vision: Tensor | None = None
    rows: Tensor | None = None
    image_rows: Tensor | None = None
    image_sizes: Tensor | None = None
    shape: tuple[int, int] = (0, 0)
    prefilled: bool = False
    rehearsing: bool = False
    moment: float | None = None
    dedup: DedupBatch | None = None
    memo: dict[tuple[int, str], Any] = field(default_factory=dict)

    def last_prompt(self, x: Tensor, patch: Patch) -> Tensor:
        """[B, T, d] -> [B, d], the state at each row's last prompt token.

        Position -1 is never read. Raises MissingMask when prompt lengths are unknown.
        """
        if self.lengths is None:
            raise MissingMask(
                f"{type(patch).__name__} decides from the prompt, but the model was called without "
                "an attention_mask. Pass attention_mask, or ask through backbone.ask / "
                "backbone.generate."
            )
        index = (self.lengths - 1).to(x.device)
        return x[torch.arange(x.shape[0], device=x.device), index]

    def decide(self, patch: Patch, site: str, make: Callable[[], Any]) -> Any:
        """The decision of `patch` at `site`: made in the first forward, read in later ones."""
        key = (id(patch), site)
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def call(self, site: str, x: Tensor) -> Tensor:
        """Runs the site's frozen module on x, ports bypassed."""
        return self.hooks.call(site, x)

    def select(self, index: Tensor) -> HookContext:
        """The same question for some of its rows.

        A decision is a tensor, or a tuple or dict of tensors, with B leading rows, so it can
        follow them.
        """

        def pick(value: Any) -> Any:
            return map_decision(value, lambda v: v[index.to(v.device)])

        rows = self.rows if self.rows is not None else torch.arange(self.shape[0])
        return replace(
            self,
            lengths=pick(self.lengths),
            mask=pick(self.mask),
            vision=pick(self.vision),
            rows=pick(rows),
            memo={k: pick(v) for k, v in self.memo.items()},
        )

    def rows_of(self, site: str, x: Tensor) -> Tensor:
        """[B'] the patch row of each leading entry of x at `site`."""
        stream = self.hooks.sites[site].stream
        if stream == "text":
            rows = self.rows
            if rows is None:
                rows = torch.arange(x.shape[0])
            return rows.to(x.device)
        assert self.image_rows is not None, (
            "a row patch at a vision site needs to know whose image is whose"
        )
        of_image = self.image_rows if self.rows is None else self.rows[self.image_rows]
        if of_image.shape[0] != x.shape[0]:
            assert self.image_sizes is not None
            each = x.shape[0] // int(self.image_sizes.sum())
            of_image = of_image.repeat_interleave(self.image_sizes * each)
        return of_image.to(x.device)


def map_decision(value: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """`run` on every tensor of a decision: a tensor, or tuples and dicts of them."""
    if isinstance(value, Tensor):
        return run(value)
    if isinstance(value, tuple):
        return tuple(map_decision(v, run) for v in value)
    if isinstance(value, dict):
        return {k: map_decision(v, run) for k, v in value.items()}
    return value


class HookPoint:
    """The hook pair of one site, and the patches that are live there."""

    def __init__(self, site: Site, hooks: HookManager) -> None:
        self.site = site
        self.hooks = hooks
        self.live: tuple[Patch, ...] = ()
        self.x: Tensor | None = None
        site.first.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        if site.last is not None:
            site.last.register_forward_hook(self._leave, with_kwargs=True, prepend=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.live or self.hooks.bypass:
            return None
        x = _first(args, kwargs)
        shaped = self.hooks.shaped(x, self.site)
        new = shaped
        for patch in self.live:
            new = patch.before(self.site.name, new, self.hooks.ctx)
            if self.site.last is None:
                new = patch.at(self.site.name, new, new, self.hooks.ctx)
        if self.site.last is not None and self.site.last is not self.site.first:
            self.x = new
        if new is shaped:
            return None
        return _with_first(args, kwargs, self.hooks.back(new, x, self.site))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.live or self.hooks.bypass:
            return None
        if self.site.last is self.site.first:
            x = self.hooks.shaped(_first(args, kwargs), self.site)
        else:
            assert self.x is not None
            x, self.x = self.x, None
        y = output[0] if isinstance(output, tuple) else output
        shaped = self.hooks.shaped(y, self.site)
        new = shaped
        for patch in self.live:
            new = patch.at(self.site.name, x, new, self.hooks.ctx)
        if new is shaped:
            return None
        new = self.hooks.back(new, y, self.site)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def _first(args: Any, kwargs: Any) -> Tensor:
    if args:
        return args[0]  # type: ignore[no-any-return]
    for name in ("hidden_states", "input", "x", "inputs_embeds"):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name]  # type: ignore[no-any-return]
    return next(v for v in kwargs.values() if isinstance(v, Tensor))


def _with_first(args: Any, kwargs: Any, x: Tensor) -> tuple[Any, Any]:
    if args:
        return (x, *args[1:]), kwargs
    old = _first(args, kwargs)
    name = next(k for k, v in kwargs.items() if v is old)
    return args, {**kwargs, name: x}


class HookManager:
    """All ports of one model, the patches that are live, and the current question."""

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = model
        self.sites = {s.name: s for s in sites}
        self.bypass = False
        self.raw_mask: Tensor | None = None
        self.ctx = HookContext(self)
        self.raw = True
        self.stack: tuple[Patch, ...] = ()
        self.ports = {s.name: HookPoint(s, self) for s in sites}
        model.register_forward_pre_hook(self._raw_call, with_kwargs=True, prepend=True)
        if hasattr(model, "generate"):
            object.__setattr__(model, "generate", self._raw_generate)

    @classmethod
    def of(cls, model: nn.Module, find: Callable[[nn.Module], Sequence[Site]]) -> HookManager:
        """The wires of `model`, made on first use: wrapping it twice returns the same ports."""
        hooks = getattr(model, "_errata_hooks", None)
        if hooks is None:
            hooks = cls(model, find(model))
            object.__setattr__(model, "_errata_hooks", hooks)
        return hooks

    def switch(self, stack: tuple[Patch, ...]) -> None:
        """Makes exactly the patches of `stack` live, in this order. Same shapes are fused first."""
        from errata.core.patch import fused, joined

        self.stack = stack
        parts = [p for patch in stack for p in patch.parts() if p.sites]
        live = fused(joined([q for p in joined(parts) for q in p.acting()]))
        for name, port in self.ports.items():
            port.live = tuple(p for p in live if name in p.sites)

    def rehearsal(self) -> list[Patch]:
        """The live patches that decide above a site where they act."""
        live = {id(m): m for port in self.ports.values() for p in port.live for m in p.modules()}
        return [m for m in live.values() if getattr(m, "ahead", "")]  # type: ignore[misc]

    @contextmanager
    def question(self, ctx: HookContext) -> Iterator[HookContext]:
        """Everything inside belongs to one question."""
        outer, raw = self.ctx, self.raw
        self.ctx, self.raw = ctx, False
        try:
            yield ctx
        finally:
            self.ctx, self.raw = outer, raw

    def shaped(self, x: Tensor, site: Site) -> Tensor:
        """x as [B, T, .]: the text stream's flattened batches get their shape back."""
        dedup = self.ctx.dedup
        if dedup is not None and site.stream == "text":
            return dedup.unpack(x)
        if x.dim() == 3:
            return x
        if site.stream == "vision":
            return x.unsqueeze(1)
        batch = self.ctx.shape[0] or 1
        return x.reshape(batch, -1, x.shape[-1])

    def back(self, new: Tensor, like: Tensor, site: Site) -> Tensor:
        """The inverse of `shaped`, in the shape of `like`."""
        dedup = self.ctx.dedup
        if dedup is not None and site.stream == "text":
            new = dedup.pack(new)
        return new.reshape(like.shape)

    @contextmanager
    def deduplicated(self, dedup: DedupBatch) -> Iterator[None]:
        """The text stream of the current question is a packed row inside."""
        ctx, ctx.dedup = self.ctx, dedup
        try:
            yield
        finally:
            ctx.dedup = None

    def call(self, site: str, x: Tensor) -> Tensor:
        module = self.sites[site]
        assert module.last is module.first, f"site {site} spans two modules and cannot be called"
        before, self.bypass = self.bypass, True
        try:
            out = module.first(x)
        finally:
            self.bypass = before
        y: Tensor = out[0] if isinstance(out, tuple) else out
        return y

    def _raw_generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, which hides a mask of ones from the forwards that it runs."""
        self.raw_mask = kwargs.get("attention_mask")
        model_class: Any = type(self.model)
        try:
            return model_class.generate(self.model, *args, **kwargs)
        finally:
            self.raw_mask = None

    def _raw_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A call of the model outside any question: the prompt is whatever the mask covers."""
        if not self.raw or not self.stack:
            return
        rewriting = next((p for p in self.stack if p.rewrites), None)
        if rewriting is not None:
            raise BadPatch(
                f"this patch ({type(rewriting).__name__}) rewrites the prompt, which a call of the "
                "model itself does not show it. Ask through backbone.ask or errata.ask."
            )
        if self.rehearsal():
            raise BadPatch(
                "this patch decides from a block above those that it changes, which a call of the "
                "model itself leaves no room for. Ask through backbone.ask or errata.ask."
            )
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if ids is None:
            return
        cache = kwargs.get("past_key_values")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        if not seen:
            mask = kwargs.get("attention_mask")
            mask = self.raw_mask if mask is None else mask
            lengths = None
            if mask is not None and mask.dim() == 2:
                columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
                lengths = (mask * columns).max(dim=1).values
            self.ctx = HookContext(self, lengths=lengths, mask=mask)
        else:
            self.ctx.prefilled = True
        self.ctx.shape = (ids.shape[0], ids.shape[1])


def hooks_of(model: nn.Module) -> HookManager | None:
    """The wires of a model that was wrapped, else None."""
    return getattr(model, "_errata_hooks", None)
