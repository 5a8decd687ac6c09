"""Runs hooks inside a frozen model.

One permanent pair of torch hooks sits on every site: a `HookPoint`. It runs the hooks that are live
for the caller (`errata.core.hooks.live`); nothing is added to or removed from the model afterwards.
That is why a hook that is applied late is seen by a compiled model, and why undoing an edit means
closing a block.

A hook point passes x as [B, T, n] and y as [B, T, o], whatever the module does: keyword inputs,
tuple outputs, flattened batches, a site whose input and output belong to two modules.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.core.hooks.context import HookContext, Site
from errata.core.hooks.dedup import DedupBatch
from errata.core.hooks.direct import DirectCalls
from errata.core.hooks.hook import Hook, walk
from errata.core.hooks.live import (
    MANAGERS,
    Block,
    Caller,
    Callers,
    Live,
    Merge,
    follow_threads,
)
from errata.core.hooks.modes import Frozen, ordinary, without_autocast
from errata.core.hooks.modules import ModuleTree


class HookManager:
    """All hook points of one model, and what is live there for each caller.

    opened: number of open blocks, of all callers; closed: number of closed ones. lock: held by
    errata while it runs a forward, since it then replaces parts of it.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = model
        self.opened = self.closed = self.depth = 0
        self.lock = threading.RLock()
        self.callers = Callers()
        self.direct = DirectCalls(self)
        self.tree = ModuleTree(model, ())
        self.sites: dict[str, Site] = {}
        self.points: dict[str, HookPoint] = {}
        self.bind(sites)
        MANAGERS.add(self)
        follow_threads()

    @classmethod
    def of(cls, model: nn.Module, find: Callable[[nn.Module], Sequence[Site]]) -> HookManager:
        """The manager of `model`, made on first use.

        Wrapping a model again returns the same one, with hook points on what was replaced.
        """
        manager = hooks_of(model)
        if manager is None:
            manager = cls(model, find(model))
            object.__setattr__(model, "_errata_hooks", manager)
        else:
            manager.bind(find(model))
        return manager

    def bind(self, sites: Sequence[Site]) -> None:
        """Puts hook points on `sites`, and takes them off modules that are no longer there."""
        if self.sites and list(self.sites.values()) == list(sites) and self.tree.intact():
            return
        former = self.points
        for point in former.values():
            point.remove()
        self.sites = {s.name: s for s in sites}
        self.points = {s.name: HookPoint(s, self) for s in sites}
        for name in self.points.keys() & former.keys():
            self.points[name].used = former[name].used
        # a compiled block has no truth value
        held = {m for s in sites for m in (s.first, s.last) if m is not None}
        self.tree = ModuleTree(self.model, held)
        self.frozen = Frozen(self.model)
        self.direct.bind(self.model, self.sites)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # graphs from before have no hooks, and are not checked for them

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the model: nothing is live in a copy."""
        return {k: v for k, v in vars(self).items() if k not in ("callers", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.opened = self.closed = self.depth = 0
        self.lock, self.callers = threading.RLock(), Callers()
        for point in self.points.values():
            point.used = 0
        MANAGERS.add(self)

    # -- what is live -------------------------------------------------------------------------

    def caller(self) -> Caller:
        """The state of the current thread or task, without blocks that were closed elsewhere."""
        if torch.compiler.is_compiling():
            traced = self.callers.traced()
            if traced is not None:
                return traced
        caller = self.callers.get()
        if caller is None:
            caller = Caller(Live(), self.context())
            self.callers.set(caller)
        if caller.live.checked != self.closed and not caller.pinned:
            live = caller.live.still_open(self.closed)
            if live is not caller.live:
                caller = caller.but(live=live)
                self.callers.set(caller)
        return caller

    @property
    def stack(self) -> tuple[Hook, ...]:
        """The caller's live hooks, as they were applied."""
        return self.caller().live.stack

    @property
    def running(self) -> tuple[Hook, ...]:
        """The caller's merged hooks, which are the ones that run."""
        return self.caller().live.running

    @property
    def ctx(self) -> HookContext:
        """The caller's current question."""
        return self.caller().ctx

    @contextmanager
    def block(self, hooks: Sequence[Hook], merge: Merge, *, alone: bool = False) -> Iterator[None]:
        """Inside, the hooks are live for this caller, on top of the others or `alone`."""
        block = Block(tuple(hooks), merge, alone)
        self._open(block)
        try:
            yield
        finally:
            self._close(block)

    def _open(self, block: Block) -> None:
        caller = self.caller()
        block.below, block.pinned = caller.live, caller.pinned
        live = Live.of((*caller.live.blocks, block), self.closed)
        own = {s for hook in block.hooks for s in hook.sites}
        with self.lock:
            block.sites = tuple(s for s in {*live.at, *own} if s in self.points)
            self.opened += 1
            for site in block.sites:
                self.points[site].used += 1
        self.callers.set(caller.but(live=live, pinned=False))

    def _close(self, block: Block) -> None:
        below, caller = block.below, self.callers.get()
        with self.lock:
            self.opened -= 1
            self.closed += 1
            for site in block.sites:
                if site in self.points:
                    self.points[site].used -= 1
        if caller is not None and block in caller.live.blocks:
            live = caller.live.without(block, self.closed)
            pinned = block.pinned and live is below
            self.callers.set(caller.but(live=live.still_open(self.closed), pinned=pinned))
        block.close()

    def deciding_ahead(self) -> list[Hook]:
        """The live hooks whose gate site lies above their edit site."""
        return [h for running in self.running for h in walk(running) if h.ahead]

    # -- questions ----------------------------------------------------------------------------

    def context(self, **fields: Any) -> HookContext:
        """A new question; the fields are those of `HookContext`."""
        return HookContext(self.sites, self.call, **fields)

    def become(self, caller: Caller) -> Any:
        """The caller's new state; returns what `restore` needs."""
        return self.callers.set(caller)

    def restore(self, token: Any) -> None:
        self.callers.restore(token)

    @contextmanager
    def question(self, ctx: HookContext) -> Iterator[HookContext]:
        """Everything inside belongs to one question."""
        caller = self.caller().but(ctx=ctx, direct=False, pinned=True)
        token = self.become(caller)
        try:
            with self.holding(caller.live):
                yield ctx
        finally:
            self.restore(token)

    @contextmanager
    def holding(self, live: Live) -> Iterator[None]:
        """Inside, what is live acts on, even if its block is closed elsewhere meanwhile.

        Without this an answer would lose its patch between two tokens.
        """
        held = [self.points[s] for s in live.at if s in self.points]
        with self.lock:
            for point in held:
                point.used += 1
        try:
            yield
        finally:
            with self.lock:
                for point in held:
                    point.used -= 1

    @contextmanager
    def forward(self) -> Iterator[None]:
        """A forward of errata: alone, on the modules that were wrapped, in evaluation mode.

        Works under `inference_mode` and `autocast` as without them. Raises BadBackbone for a model
        whose modules were replaced.
        """
        with self.lock:
            if self.depth:
                yield
                return
            self.tree.check()
            self.depth += 1
            try:
                with ordinary(), self.frozen():
                    yield
            finally:
                self.depth -= 1

    @contextmanager
    def deduplicated(self, dedup: DedupBatch) -> Iterator[None]:
        """Inside, the text stream of the current question holds every distinct column once."""
        ctx = self.ctx
        ctx.dedup = dedup
        try:
            yield
        finally:
            ctx.dedup = None

    def call(self, site: str, x: Tensor) -> Tensor:
        """Runs the site's frozen module on x, hooks bypassed."""
        module = self.sites[site]
        assert module.last is module.first, f"site {site} spans two modules and cannot be called"
        token = self.become(self.caller().but(bypass=True))
        try:
            out = module.first(x)
        finally:
            self.restore(token)
        y: Tensor = out[0] if isinstance(out, tuple) else out
        return y


class HookPoint:
    """The pair of torch hooks at one site. used: number of open blocks with hooks here."""

    def __init__(self, site: Site, manager: HookManager) -> None:
        self.site, self.manager = site, manager
        self.used = 0
        self.handles = [
            site.first.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        ]
        if site.last is not None:
            self.handles.append(
                site.last.register_forward_hook(self._leave, with_kwargs=True, prepend=True)
            )

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def live(self) -> tuple[Hook, ...]:
        """The hooks that are live here for the caller."""
        return self.manager.caller().live.at.get(self.site.name, ())

    def _enter(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        """kwargs: None for a module that was put in place of the site's (quantised), with its hooks
        but without their options. Patches are then refused elsewhere (`ModuleTree`).
        """
        if not self.used or kwargs is None:
            return None
        caller = self.manager.caller()
        hooks = caller.live.at.get(self.site.name)
        if not hooks or caller.bypass:
            return None
        ctx = caller.ctx
        x = _first(args, kwargs)
        shaped = _shaped(x, self.site, ctx)
        new = shaped
        with without_autocast(x.device):
            for hook in hooks:
                new = hook.before(self.site.name, new, ctx)
                if self.site.last is None:
                    new = hook.at(self.site.name, new, new, ctx)
        if self.site.last is not None and self.site.last is not self.site.first:
            caller.inputs[self.site.name] = new
        if new is shaped:
            return None
        return _with_first(args, kwargs, _back(new, x, self.site, ctx))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        if not self.used or module not in (self.site.first, self.site.last):
            return None
        caller = self.manager.caller()
        hooks = caller.live.at.get(self.site.name)
        if not hooks or caller.bypass:
            return None
        ctx = caller.ctx
        if self.site.last is self.site.first:
            x = _shaped(_first(args, kwargs), self.site, ctx)
        else:
            x = caller.inputs.pop(self.site.name)
        part = self.site.output
        y = output[part] if isinstance(output, tuple) else output
        shaped = _shaped(y, self.site, ctx)
        new = shaped
        with without_autocast(y.device):
            for hook in hooks:
                new = hook.at(self.site.name, x, new, ctx)
        if new is shaped:
            return None
        new = _back(new, y, self.site, ctx)
        if not isinstance(output, tuple):
            return new
        return (*output[:part], new, *output[part + 1 :])


def _shaped(x: Tensor, site: Site, ctx: HookContext) -> Tensor:
    """x as [B, T, .]: flattened batches of the text stream get their shape back."""
    if ctx.dedup is not None and site.stream == "text":
        return ctx.dedup.unpack(x)
    if x.dim() == 3:
        return x[:, _image(site, ctx)] if site.image else x
    if site.stream == "vision":
        return x.unsqueeze(1) if x.dim() < 3 else x.flatten(0, -3)
    if site.stream == "draw" and x.dim() > 3:  # [R, width, height, ...] of convolutions
        return x.flatten(2).transpose(1, 2)
    return x.reshape(ctx.shape[0] or 1, -1, x.shape[-1])


def _back(new: Tensor, like: Tensor, site: Site, ctx: HookContext) -> Tensor:
    """The inverse of `_shaped`, in the shape of `like`."""
    if ctx.dedup is not None and site.stream == "text":
        new = ctx.dedup.pack(new)
    if site.stream == "draw" and like.dim() > 3:
        new = new.transpose(1, 2)
    if site.image:
        whole = like.clone()
        whole[:, _image(site, ctx)] = new
        return whole
    return new if like.dim() == 3 else new.reshape(like.shape)


def _image(site: Site, ctx: HookContext) -> slice:
    """The image tokens of a stream that may hold those of the text too."""
    n = ctx.image_tokens
    return slice(0, n or None) if site.image == "first" else slice(-n if n else None, None)


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
