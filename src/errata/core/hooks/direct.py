"""Calls of the model by other code than errata: its forward, and its own `generate`.

Hooks then need to know which prompt is being answered, however the forwards are cut: with a KV
cache from before, with the prompt in pieces, with drafted tokens after the prompt, with beams, or
without a cache. In `generate` the prompt is what `generate` is given. In a loop that calls forward
itself it is what the first forward is given, and later forwards are told by their KV cache, which
is marked. Where the prompt cannot be known, the call is refused.

Shapes: B rows, P columns of the prompt, T columns of one forward, K columns in the KV cache.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from errata.core.errors import BadPatch
from errata.core.hooks.cache_names import NAMES, cache_in
from errata.core.hooks.context import HookContext, Site
from errata.core.hooks.generation import Generation, class_of
from errata.core.hooks.hook import Hook, flat
from errata.core.hooks.live import Caller, Callers, Live
from errata.core.hooks.modules import ModuleTree

#: sites above all attention: a hook there leaves the KV cache as it is
_ABOVE_CACHE = frozenset({"final_norm", "head"})
_MARK = "_errata_question"


@dataclass(eq=False)
class CacheMark:
    """What a KV cache was filled for: the hooks that were live, and the context of the answer.

    keys: of the cache's first layer after the last forward, which show whether its rows were moved;
    a cache of a fixed size goes on to write into them, behind their first `columns`.
    loaded: of a cache that was saved and loaded; which hooks were live is not known any more.
    """

    stack: tuple[Hook, ...] = ()
    running: tuple[Hook, ...] = ()
    ctx: HookContext | None = None
    generation: Generation | None = None
    keys: Tensor | None = None
    columns: int = 0
    loaded: bool = False

    def __deepcopy__(self, memo: Any) -> CacheMark:
        return self

    def __reduce__(self) -> Any:
        in_cache = self.loaded or bool(_in_cache(self.stack))
        return (CacheMark, ((), (), None, None, None, 0, in_cache))


class Watched(Protocol):
    """What is needed of a `HookManager`."""

    model: nn.Module
    tree: ModuleTree
    callers: Callers
    lock: Any
    opened: int

    def caller(self) -> Caller: ...
    def become(self, caller: Caller) -> Any: ...
    def restore(self, token: Any) -> None: ...
    def deciding_ahead(self) -> list[Hook]: ...
    def holding(self, live: Live) -> AbstractContextManager[None]: ...
    def context(self, **fields: Any) -> HookContext: ...
    def question(self, ctx: HookContext) -> AbstractContextManager[HookContext]: ...


class DirectCalls:
    """Sets the caller's context before each forward that errata does not make itself."""

    def __init__(self, manager: Watched) -> None:
        self.manager = manager
        self.handles: list[Any] = []
        #: what the arguments of a watched module's forward are called, in order
        self.names: dict[nn.Module, tuple[str, ...]] = {}
        #: thread -> the outermost module of the direct call that it is in
        self.running: dict[int, nn.Module] = {}

    def others(self) -> bool:
        """Whether another thread is inside a direct call."""
        alive = {t.ident for t in threading.enumerate()} - {threading.get_ident()}
        return bool(self.running) and not alive.isdisjoint(self.running)

    def bind(self, model: nn.Module, sites: Mapping[str, Site]) -> None:
        """Watches every module that holds the text model, from `model` down."""
        for handle in self.handles:
            handle.remove()
        first = sites["text.0.in"].first if "text.0.in" in sites else None
        self.handles = []
        holders = _holders(model, first)
        named = [tuple(_positions(type(m).forward)) for m in holders]
        self.names = {
            m: next((names for names in named[i:] if names), ()) for i, m in enumerate(holders)
        }
        for module in holders:
            self.handles += [
                module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
                module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            ]
            if hasattr(type(module), "generate"):
                object.__setattr__(module, "generate", _Generate(self, module))

    # -- generate -----------------------------------------------------------------------------

    def generate(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The module's own `generate`, which answers one question."""
        plain = class_of(module).generate
        caller = self.manager.caller()
        running = caller.generation
        if not caller.live.stack or (running is not None and running.module is module):
            return plain(module, *args, **kwargs)
        generation = Generation.of(module, args, kwargs)
        if generation is None:
            return plain(module, *args, **kwargs)
        token = self.manager.become(caller.but(generation=generation, pinned=True))
        try:
            with self.manager.holding(caller.live):
                return plain(module, *args, **kwargs)
        finally:
            self.manager.restore(token)

    # -- forward ------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(args) > 1:
            args, kwargs = (), {**dict(zip(self.names[module], args, strict=False)), **kwargs}
        if torch.compiler.is_compiling() and not self._asks(args, kwargs):
            return
        self._begin(module, args, kwargs)

    def _asks(self, args: Any, kwargs: Any) -> bool:
        """In a compiled model: whether a live hook needs more of the question than its shape."""
        if not self.manager.opened:
            return False
        caller = self.manager.callers.traced()
        if caller is None or caller.live.asks:
            return True
        ids = _ids(args, kwargs)
        if caller.direct and isinstance(ids, Tensor):
            caller.ctx.shape = (ids.shape[0], ids.shape[1])
        return False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        manager = self.manager
        caller = manager.caller()
        if not caller.direct or caller.entered not in (None, module):
            return
        with manager.lock:  # a forward of errata may have replaced parts of the model
            self.running.setdefault(threading.get_ident(), module)
        cache = cache_in(kwargs)
        live = caller.live
        if not live.stack:
            if _length(cache):
                _check_cache(_question_of(cache), live)
            elif _question_of(cache) is not None:
                _mark(cache, CacheMark())  # it was emptied
            return
        self._check_stack(live)
        ids = _ids(args, kwargs)
        if not isinstance(ids, Tensor):
            return
        manager.tree.check()
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        ctx = self._context(caller, ids, mask, cache)
        manager.become(caller.but(ctx=ctx, entered=module))
        if cache is not None:
            _mark(cache, CacheMark(live.stack, live.running, ctx, caller.generation))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if len(args) > 1:
            args, kwargs = (), {**dict(zip(self.names[module], args, strict=False)), **kwargs}
        if torch.compiler.is_compiling() and not self._asks(args, kwargs):
            return
        self._end(module, kwargs, output)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _end(self, module: nn.Module, kwargs: Any, output: Any) -> None:
        thread = threading.get_ident()
        if self.running.get(thread) is module:
            del self.running[thread]
        caller = self.manager.caller()
        if caller.entered is not module:
            return
        self.manager.become(caller.but(entered=None))
        live, cache = caller.live, cache_in(kwargs)
        if cache is None:
            cache = next(
                (c for c in (getattr(output, n, None) for n in NAMES) if c is not None), None
            )
            if cache is not None:
                _mark(cache, CacheMark(live.stack, live.running, caller.ctx, caller.generation))
        question = _question_of(cache)
        if question is not None and caller.generation is None and _deciding(live.running):
            question.keys, question.columns = _keys(cache), _length(cache)

    def _check_stack(self, live: Live) -> None:
        rewriting = next((h for h in live.stack if h.rewrites), None)
        if rewriting is not None:
            raise BadPatch(
                f"this patch ({type(rewriting).__name__}) rewrites the prompt, but a direct "
                "call of the model does not pass the prompt to it. Ask through backbone.ask or "
                "errata.ask."
            )
        if any(h.reads_prompts for h in live.stack):
            raise BadPatch(
                "this patch decides from the prompt itself, but a direct call of the model does "
                "not pass the prompt to it. Ask through backbone.ask or errata.ask."
            )
        if self.manager.deciding_ahead():
            raise BadPatch(
                "this patch decides from a block above those that it changes. It needs a dry run "
                "first, which a direct call of the model does not make. Ask through backbone.ask "
                "or errata.ask."
            )

    def _context(self, caller: Caller, ids: Tensor, mask: Tensor | None, cache: Any) -> HookContext:
        """The context of the forward over `ids` [B, T] or [B, T, d], with K columns in the cache.

        Raises BadPatch where it is not known which prompt is being answered.
        """
        generation, live = caller.generation, caller.live
        rows, columns, cached = int(ids.shape[0]), int(ids.shape[1]), _length(cache)
        question = _question_of(cache) if cached else None
        ctx = question.ctx if question is not None else None
        if (
            cached
            and question is not None
            and ctx is not None
            and (question.generation is generation and _same(question.running, live.running))
        ):
            self._check_continued(ctx, generation, live, rows, columns)
            _check_rows(question, cache)
        elif (
            not cached
            and generation is not None
            and generation.ctx is not None
            and (cache is None and generation.ctx.shape[0] == rows)
        ):
            ctx = generation.ctx
        else:
            if cached:
                _check_cache(question, live)
            ctx = self._started(caller, ids, mask, cached)
            if generation is not None and cache is None:
                generation.ctx = ctx
        assert ctx is not None
        ctx.offset = cached
        ctx.prefilled = bool(cached and ctx.lengths is not None and (ctx.lengths <= cached).all())
        ctx.prefilled = ctx.prefilled or bool(cached and ctx.lengths is None)
        ctx.shape = (rows, columns)
        # the answer so far, and drafted tokens, are real columns and no images
        ctx.mask = _filled(ctx.mask, cached + columns, 1)
        ctx.vision = _filled(ctx.vision, cached + columns, False)
        return ctx

    def _check_continued(
        self, ctx: HookContext, generation: Generation | None, live: Live, rows: int, columns: int
    ) -> None:
        """A loop that calls forward itself feeds one token at a time, to the same rows."""
        if not _deciding(live.running):
            return
        if rows != ctx.shape[0]:
            raise BadPatch(
                f"the KV cache was filled for {ctx.shape[0]} rows and this call has {rows}. A "
                "patch that decides from the prompt needs the same rows for a whole answer. Call "
                "model.generate, or ask through errata.ask."
            )
        if generation is None and columns > 1:
            raise BadPatch(
                f"this call adds {columns} tokens to a KV cache. They may belong to the prompt or "
                "to the answer, and this patch decides from the prompt. Pass the whole prompt to "
                "one call of the model or to model.generate, or ask through errata.ask."
            )

    def _started(
        self, caller: Caller, ids: Tensor, mask: Tensor | None, cached: int
    ) -> HookContext:
        """The context of a new question, whose first forward holds columns K to K + T."""
        generation, live = caller.generation, caller.live
        rows, columns = int(ids.shape[0]), int(ids.shape[1])
        ours = (
            generation is not None
            and rows % generation.rows == 0
            and (generation.in_pieces or cached + columns >= generation.width)
        )
        if generation is None or not ours:
            if cached and _deciding(live.running):
                raise BadPatch(
                    "this call continues a KV cache that was filled without this patch, and this "
                    "patch decides from the prompt. Fill the cache again with the patch live, pass "
                    "the whole prompt to model.generate, or ask through errata.ask."
                )
            return self._new(ids, mask)
        if generation.mask is None and mask is not None and mask.shape[0] == rows:
            return self._new(ids, mask[:, : generation.width])  # as `generate` inferred it
        cut = cached > 0 or cached + columns < generation.width
        if cut and _deciding(live.running):
            ctx = self._decided(generation)
        else:
            prompt = generation.arguments.get("input_ids") if generation.whole else None
            ctx = self._new(prompt, generation.mask)
            ctx.shape = (generation.rows, generation.width)
        return _repeated(ctx, rows // generation.rows)

    def _new(self, ids: Tensor | None, mask: Tensor | None) -> HookContext:
        """A new question, whose prompt is where `mask` is 1."""
        config: Any = getattr(self.manager.model, "config", None)
        vision = _image_columns(ids, config) if ids is not None and ids.dim() == 2 else None
        return self.manager.context(lengths=_lengths(mask), mask=mask, vision=vision)

    def _decided(self, generation: Generation) -> HookContext:
        """The decisions for the whole prompt, made in a forward of its own.

        Needed where `generate` runs the prompt in pieces, or from a KV cache that holds its front.
        """
        inputs = generation.forward_inputs()
        ids = inputs.get("input_ids")
        ctx = self._new(ids, generation.mask)
        pictures = any(isinstance(v, Tensor) and v.is_floating_point() for v in inputs.values())
        lack = not pictures and ctx.vision is not None and bool(ctx.vision.any())
        if lack or not generation.whole:
            part = "the pictures" if generation.whole else "the first part"
            raise BadPatch(
                f"{part} of this prompt can be found in its KV cache, but not in this call. The "
                "patch decides from the whole prompt: pass all of it to model.generate, pictures "
                "too, or ask through errata.ask."
            )
        ctx.shape = (generation.rows, generation.width)
        with torch.no_grad(), self.manager.question(ctx):
            generation.module(**inputs, use_cache=False)
        return ctx


class _Generate:
    """Stands in for a module's `generate`."""

    def __init__(self, calls: DirectCalls, module: nn.Module) -> None:
        self.calls, self.module = calls, module
        self.__doc__ = class_of(module).generate.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.calls.generate(self.module, args, kwargs)


def _holders(model: nn.Module, inner: nn.Module | None) -> list[nn.Module]:
    """`model` and the modules inside it that hold `inner`, outermost first; not bare lists."""
    if inner is None:
        return [model]
    path = next((n for n, m in model.named_modules() if m is inner), "")
    holders, module = [model], model
    for name in path.split(".")[:-1]:
        module = getattr(module, name)
        if not isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            holders.append(module)
    return holders


def _positions(forward: Any) -> list[str]:
    """What the positional arguments of a forward are called; none if it takes any (`*args`)."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return []
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _ids(args: Any, kwargs: Any) -> Any:
    """What a forward runs over: ids [B, T] or embeddings [B, T, d]; None if it is not given."""
    if args:
        return args[0]
    ids = kwargs.get("input_ids")
    return kwargs.get("inputs_embeds") if ids is None else ids


def _deciding(hooks: Iterable[Hook]) -> bool:
    return any(h.decides for h in hooks)


def _same(a: Sequence[Hook], b: Sequence[Hook]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _in_cache(stack: Iterable[Hook]) -> list[Hook]:
    """The hooks that change what a KV cache holds."""
    return [h for h in flat(stack) if h.sites - h.observes - _ABOVE_CACHE]


def _check_cache(question: CacheMark | None, live: Live) -> None:
    """Raises BadPatch if a cache that answers another question does not fit what is live now."""
    before = _in_cache(question.stack) if question is not None else []
    now = _in_cache(live.stack)
    if question is not None and question.loaded:
        raise BadPatch(
            "this KV cache was filled with patches live, and then saved and loaded: which patches "
            "it shows is not known any more. Begin with an empty cache."
        )
    if _same(before, now) and not _deciding(now):
        return
    if _same(before, now):
        raise BadPatch(
            "this KV cache was filled for another prompt, and this patch decides for each prompt "
            "what the cache holds. Begin with an empty cache."
        )
    state = "with other patches live" if before else "without this patch"
    raise BadPatch(
        f"this KV cache was filled {state}, so that its part of the prompt does not show what is "
        "live now. Begin with an empty cache, inside the same `with backbone.applied(...)`."
    )


def _keys(cache: Any) -> Tensor | None:
    """[B, h, K, d] the keys of a cache's first layer; None if it does not show them."""
    layers = getattr(cache, "layers", None)
    module = layers[0] if layers else None
    keys = getattr(module, "keys", None)
    return keys if isinstance(keys, Tensor) else None


def _check_rows(question: CacheMark, cache: Any) -> None:
    """Raises BadPatch for a cache whose rows were moved since: its decisions were not."""
    old, new = question.keys, _keys(cache)
    if old is None or new is None or old is new or old.shape[0] == 1:
        return
    columns = min(question.columns, old.shape[-2], new.shape[-2])
    if not torch.equal(old[..., :columns, :].to(new.device), new[..., :columns, :]):
        raise BadPatch(
            "the rows of this KV cache were changed or put in another order, and this patch has "
            "decided for each row. Call model.generate, or ask through errata.ask."
        )


def _length(cache: Any) -> int:
    """Columns in a KV cache; 0 for none, and for caches that do not say."""
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if length is not None else 0


def _question_of(cache: Any) -> CacheMark | None:
    found = getattr(cache, "__dict__", {}).get(_MARK)
    return found if isinstance(found, CacheMark) else None


def _mark(cache: Any, question: CacheMark) -> None:
    attributes = getattr(cache, "__dict__", None)
    if attributes is not None:
        attributes[_MARK] = question


def _lengths(mask: Tensor | None) -> Tensor | None:
    """[B] the last real column of each row, plus one."""
    if mask is None:
        return None
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).max(dim=1).values


def _repeated(ctx: HookContext, times: int) -> HookContext:
    """The same question with each row `times` times, as for beams."""
    if times == 1:
        return ctx
    index = torch.arange(ctx.shape[0]).repeat_interleave(times)
    if ctx.lengths is not None:
        index = index.to(ctx.lengths.device)
    return replace(ctx.select(index), shape=(len(index), ctx.shape[1]))


def _image_columns(ids: Tensor, config: Any) -> Tensor:
    """[B, P] True for image and video tokens."""
    names = (f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index"))
    columns = torch.zeros_like(ids, dtype=torch.bool)
    for name in names:
        token = getattr(config, name, None)
        if token is not None:
            columns |= ids == token
    return columns


def _filled(columns: Tensor | None, width: int, fill: float) -> Tensor | None:
    """[B, K] with at least `width` columns."""
    if columns is None or columns.shape[1] >= width:
        return columns
    return nn.functional.pad(columns, (0, width - columns.shape[1]), value=fill)
