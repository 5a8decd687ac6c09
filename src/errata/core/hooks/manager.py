"""Runs hooks inside a frozen model.

One permanent pair of torch hooks sits on every site: a `HookPoint`. It reads `live`, a tuple of
hooks that `HookManager.switch` replaces; nothing is added to or removed from the model afterwards.
That is why a hook that is applied late is seen by a compiled model, and why undoing an edit means
dropping it from a tuple.

A hook point passes x as [B, T, n] and y as [B, T, o], whatever the module does: keyword inputs,
tuple outputs, flattened batches, a site whose input and output belong to two modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.core.errors import BadPatch
from errata.core.hooks.cache_names import cache_in
from errata.core.hooks.context import HookContext, Site
from errata.core.hooks.dedup import DedupBatch
from errata.core.hooks.hook import Hook, walk


class HookManager:
    """All hook points of one model, the hooks that are live, and the current question.

    stack: the hooks as they were applied. running: the merged hooks, which are the ones that run.
    ctx: the context of the current question. bypass: True while a hook calls a site's own module.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = model
        self.sites = {s.name: s for s in sites}
        self.bypass = False
        self.raw_mask: Tensor | None = None
        self.ctx = self.context()
        self.raw = True
        self.stack: tuple[Hook, ...] = ()
        self.running: tuple[Hook, ...] = ()
        self.points = {s.name: HookPoint(s, self) for s in sites}
        model.register_forward_pre_hook(self._raw_call, with_kwargs=True, prepend=True)
        if hasattr(model, "generate"):
            object.__setattr__(model, "generate", self._raw_generate)

    @classmethod
    def of(cls, model: nn.Module, find: Callable[[nn.Module], Sequence[Site]]) -> HookManager:
        """The manager of `model`, made on first use: wrapping it twice returns the same one."""
        manager = hooks_of(model)
        if manager is None:
            manager = cls(model, find(model))
            object.__setattr__(model, "_errata_hooks", manager)
        return manager

    def context(self, **fields: Any) -> HookContext:
        """A new question; the fields are those of `HookContext`."""
        return HookContext(self.sites, self.call, **fields)

    def switch(self, stack: tuple[Hook, ...], running: Sequence[Hook]) -> None:
        """Only `running`, the merged hooks of `stack`, act from now on, in this order."""
        self.stack, self.running = stack, tuple(running)
        for name, point in self.points.items():
            point.live = tuple(h for h in running if name in h.sites)

    def deciding_ahead(self) -> list[Hook]:
        """The live hooks whose gate site lies above their edit site."""
        return [h for running in self.running for h in walk(running) if h.ahead]

    @contextmanager
    def question(self, ctx: HookContext) -> Iterator[HookContext]:
        """Everything inside belongs to one question."""
        outer, raw = self.ctx, self.raw
        self.ctx, self.raw = ctx, False
        try:
            yield ctx
        finally:
            self.ctx, self.raw = outer, raw

    @contextmanager
    def deduplicated(self, dedup: DedupBatch) -> Iterator[None]:
        """Inside, the text stream of the current question holds every distinct column once."""
        ctx, ctx.dedup = self.ctx, dedup
        try:
            yield
        finally:
            ctx.dedup = None

    def call(self, site: str, x: Tensor) -> Tensor:
        """Runs the site's frozen module on x, hooks bypassed."""
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
        """Keeps the mask: the model's own `generate` does not pass a mask of ones to forward."""
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
        rewriting = next((h for h in self.stack if h.rewrites), None)
        if rewriting is not None:
            raise BadPatch(
                f"this patch ({type(rewriting).__name__}) rewrites the prompt, but a direct "
                "call of the model does not pass the prompt to it. Ask through backbone.ask or "
                "errata.ask."
            )
        if self.deciding_ahead():
            raise BadPatch(
                "this patch decides from a block above those that it changes. It needs a dry run "
                "first, which a direct call of the model does not make. Ask through backbone.ask "
                "or errata.ask."
            )
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if ids is None:
            return
        cache = cache_in(kwargs)
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if not cached:
            mask = kwargs.get("attention_mask")
            mask = self.raw_mask if mask is None else mask
            lengths = None
            if mask is not None and mask.dim() == 2:
                columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
                lengths = (mask * columns).max(dim=1).values
            self.ctx = self.context(lengths=lengths, mask=mask)
        else:
            self.ctx.prefilled = True
        self.ctx.shape = (ids.shape[0], ids.shape[1])


class HookPoint:
    """The pair of torch hooks at one site, and the hooks that are live there."""

    def __init__(self, site: Site, manager: HookManager) -> None:
        self.site, self.manager = site, manager
        self.live: tuple[Hook, ...] = ()
        self.x: Tensor | None = None
        site.first.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        if site.last is not None:
            site.last.register_forward_hook(self._leave, with_kwargs=True, prepend=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.live or self.manager.bypass:
            return None
        ctx = self.manager.ctx
        x = _first(args, kwargs)
        shaped = _shaped(x, self.site, ctx)
        new = shaped
        for hook in self.live:
            new = hook.before(self.site.name, new, ctx)
            if self.site.last is None:
                new = hook.at(self.site.name, new, new, ctx)
        if self.site.last is not None and self.site.last is not self.site.first:
            self.x = new
        if new is shaped:
            return None
        return _with_first(args, kwargs, _back(new, x, self.site, ctx))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.live or self.manager.bypass:
            return None
        ctx = self.manager.ctx
        if self.site.last is self.site.first:
            x = _shaped(_first(args, kwargs), self.site, ctx)
        else:
            assert self.x is not None
            x, self.x = self.x, None
        y = output[0] if isinstance(output, tuple) else output
        shaped = _shaped(y, self.site, ctx)
        new = shaped
        for hook in self.live:
            new = hook.at(self.site.name, x, new, ctx)
        if new is shaped:
            return None
        new = _back(new, y, self.site, ctx)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def _shaped(x: Tensor, site: Site, ctx: HookContext) -> Tensor:
    """x as [B, T, .]: flattened batches of the text stream get their shape back."""
    if ctx.dedup is not None and site.stream == "text":
        return ctx.dedup.unpack(x)
    if x.dim() == 3:
        return x
    if site.stream == "vision":
        return x.unsqueeze(1)
    return x.reshape(ctx.shape[0] or 1, -1, x.shape[-1])


def _back(new: Tensor, like: Tensor, site: Site, ctx: HookContext) -> Tensor:
    """The inverse of `_shaped`, in the shape of `like`."""
    if ctx.dedup is not None and site.stream == "text":
        new = ctx.dedup.pack(new)
    return new.reshape(like.shape)


def _first(args: Any, kwargs: Any) -> Tensor:
    """The tensor that a module is called with, by position or by keyword."""
    if args:
        return args[0]  # type: ignore[no-any-return]
    for name in ("hidden_states", "input", "x", "inputs_embeds"):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name]  # type: ignore[no-any-return]
    return next(v for v in kwargs.values() if isinstance(v, Tensor))


def _with_first(args: Any, kwargs: Any, x: Tensor) -> tuple[Any, Any]:
    """The arguments with x in place of what `_first` gave."""
    if args:
        return (x, *args[1:]), kwargs
    old = _first(args, kwargs)
    name = next(k for k, v in kwargs.items() if v is old)
    return args, {**kwargs, name: x}


def hooks_of(model: nn.Module) -> HookManager | None:
    """The manager of a model that was wrapped, else None."""
    return getattr(model, "_errata_hooks", None)
