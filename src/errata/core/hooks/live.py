"""What is live for one caller: a thread, or a coroutine.

Hooks are applied in `with` blocks. Blocks of one caller may nest or cross. A caller never sees the
blocks of another, with one exception: a new thread sees the blocks of the thread that starts it,
for as long as they are open, since `Thread(target=model.generate)` is how text is streamed. A job
of a pool of threads sees the blocks of the thread that hands it over, and a coroutine those of the
task that starts it (`contextvars`).
"""

from __future__ import annotations

import contextvars
import functools
import threading
import weakref
from asyncio.events import _get_running_loop
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from errata.core.hooks.context import HookContext
from errata.core.hooks.generation import Generation
from errata.core.hooks.hook import Hook, walk

T = TypeVar("T")
#: makes the hooks that run from the hooks that were applied
Merge = Callable[[Sequence[Hook]], Sequence[Hook]]


@dataclass(eq=False, slots=True)
class Block:
    """One `with` block: its hooks act on top of the earlier blocks, or instead of them (`alone`).

    below, pinned: of the caller when it was opened. sites: where it made hooks act.
    """

    hooks: tuple[Hook, ...]
    merge: Merge
    alone: bool = False
    open: bool = True
    below: Live | None = None
    pinned: bool = False
    sites: tuple[str, ...] = ()

    def close(self) -> None:
        self.open, self.hooks, self.below = False, (), None


@dataclass(eq=False, slots=True)
class Live:
    """The open blocks of a caller, and what follows from them.

    stack: the hooks as they were applied. running: the merged hooks, which are the ones that run.
    at: site -> those of them that act there. asks: whether some of them need to know the prompt.
    checked: how many blocks of the model, of all callers, had been closed when these were last
    known to be open. kept: by `once`.
    """

    blocks: tuple[Block, ...] = ()
    stack: tuple[Hook, ...] = ()
    running: tuple[Hook, ...] = ()
    at: dict[str, tuple[Hook, ...]] = field(default_factory=dict)
    asks: bool = False
    checked: int = 0
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What follows from what is live, made on first use."""
        if key not in self.kept:
            self.kept[key] = make()
        return cast(T, self.kept[key])

    @classmethod
    def of(cls, blocks: tuple[Block, ...], checked: int = 0) -> Live:
        stack: tuple[Hook, ...] = ()
        for block in blocks:
            stack = block.hooks if block.alone else (*stack, *block.hooks)
        running = tuple(blocks[-1].merge(stack)) if blocks else ()
        sites = {site for hook in running for site in hook.sites}
        at = {s: tuple(h for h in running if s in h.sites) for s in sites}
        asks = any(h.decides or h.rewrites or h.ahead for top in stack for h in walk(top))
        return cls(blocks, stack, running, at, asks, checked)

    def without(self, closed: Block, checked: int) -> Live:
        """What is live once `closed`, one of the blocks, is closed."""
        below = closed.below
        if self.blocks[-1] is closed and below is not None and below.blocks == self.blocks[:-1]:
            return below
        return Live.of(tuple(b for b in self.blocks if b is not closed), checked)

    def still_open(self, checked: int) -> Live:
        """The same without the blocks that were closed elsewhere."""
        blocks = tuple(b for b in self.blocks if b.open)
        if len(blocks) == len(self.blocks):
            self.checked = checked
            return self
        return Live.of(blocks, checked)


@dataclass(eq=False, slots=True)
class Caller:
    """What one caller sees of a model. Never shared by two callers that ask: it is replaced.

    ctx: of its current question. direct: whether the model is called by other code than errata.
    bypass: True while a hook calls a site's own module. pinned: what is live stays as it is until
    the question is answered. generation: the running call of the model's own `generate`. entered:
    the outermost module of a running direct call. inputs: of sites that span two modules.
    """

    live: Live
    ctx: HookContext
    direct: bool = True
    bypass: bool = False
    pinned: bool = False
    generation: Generation | None = None
    entered: nn.Module | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def but(self, **changes: Any) -> Caller:
        """The same with other values, and with its own `inputs`."""
        return replace(self, **{"inputs": {}, **changes})


#: the managers of all wrapped models
MANAGERS: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(eq=False, slots=True)
class Carried:
    """What is live where a thread is started or a job is handed to a pool of threads."""

    of: list[tuple[weakref.ref[Any], Live]]

    @classmethod
    def from_here(cls) -> Carried:
        return cls([(weakref.ref(m), m.caller().live) for m in list(MANAGERS) if m.opened])

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Inside, the current thread sees exactly this, as far as it is still open."""
        live = {id(manager): live for ref, live in self.of if (manager := ref()) is not None}
        tokens = [(m, m.callers.start(m, live.get(id(m), Live()))) for m in list(MANAGERS)]
        try:
            yield
        finally:
            for manager, token in tokens:
                manager.callers.restore(token)


@functools.cache
def follow_threads() -> None:
    """From now on a thread knows the blocks that are open where it is started, and a job of a pool
    of threads those that are open where it is handed over.

    Python passes `contextvars` to new tasks, but not to new threads (before 3.14), and nowhere says
    which thread started which. So `Thread.start` and what takes jobs are wrapped, once. The blocks
    are set in the thread's own context: a job that brings another context (`asyncio.to_thread`,
    the workers of web servers) sees only what is live in that.
    """
    _wrap(threading.Thread, "start", _starting)
    _wrap(ThreadPoolExecutor, "submit", _handing_over)
    for name in ("apply", "apply_async", "map", "map_async", "starmap", "starmap_async", "imap",
                 "imap_unordered"):  # fmt: skip
        _wrap(ThreadPool, name, _handing_over)


def _wrap(cls: type, name: str, wrapper: Callable[..., Any]) -> None:
    plain = getattr(cls, name)

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(plain, *args, **kwargs)

    type.__setattr__(cls, name, wrapped)


def _starting(plain: Callable[[threading.Thread], None], thread: threading.Thread) -> None:
    carried = Carried.from_here()
    if carried.of:
        run = thread.run

        def run_with_blocks() -> None:
            del vars(thread)["run"]
            with carried.seen():
                run()

        vars(thread)["run"] = run_with_blocks
    plain(thread)


def _handing_over(plain: Callable[..., Any], pool: Any, *args: Any, **kwargs: Any) -> Any:
    """The job is the first argument, or `func`, as `multiprocessing` calls it."""
    carried = Carried.from_here()
    if carried.of and args:
        args = (_Job(args[0], carried), *args[1:])
    elif carried.of and "func" in kwargs:
        kwargs["func"] = _Job(kwargs["func"], carried)
    return plain(pool, *args, **kwargs)


class _Job:
    """A job of a pool of threads, with what is live where it was handed over."""

    def __init__(self, run: Callable[..., Any], carried: Carried) -> None:
        self.run, self.carried = run, carried

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.carried.seen():
            return self.run(*args, **kwargs)


class Callers:
    """The `Caller` of each thread and task. `get` is None where nothing was asked or applied.

    A compiled model cannot be traced through a context variable, but through a thread-local. So the
    callers of threads without tasks are held in both.
    """

    class _Here(threading.local):
        caller: Caller | None = None

    def __init__(self) -> None:
        self.variable: contextvars.ContextVar[Caller | None] = contextvars.ContextVar(
            "errata_caller", default=None
        )
        self.here = self._Here()

    def get(self) -> Caller | None:
        return self.variable.get()

    def traced(self) -> Caller | None:
        """As `get`, for a model that is being compiled; None where only `get` knows."""
        caller = self.here.caller
        if caller is None or not all(b.open for b in caller.live.blocks):
            return None
        return caller

    def set(self, caller: Caller) -> contextvars.Token[Caller | None]:
        self._mirror(caller)
        return self.variable.set(caller)

    def start(self, manager: Any, live: Live) -> contextvars.Token[Caller | None]:
        """Begins a thread or job that sees `live`; `restore` ends it.

        Not in the thread-local: the thread may run jobs that bring another context.
        """
        self._mirror(None)
        return self.variable.set(Caller(live.still_open(manager.closed), manager.context()))

    def restore(self, token: contextvars.Token[Caller | None]) -> None:
        self.variable.reset(token)
        self._mirror(self.variable.get())

    def _mirror(self, caller: Caller | None) -> None:
        no_blocks = caller is None or not caller.live.blocks
        self.here.caller = None if no_blocks or _get_running_loop() is not None else caller
