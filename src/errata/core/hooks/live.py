"""What is live for one caller: a thread, or a coroutine.

Hooks are applied in `with` blocks. Blocks of one caller may nest or cross. A caller never sees the
blocks of another, with one exception: a new thread sees the blocks of the thread that starts it,
for as long as they are open, since `Thread(target=model.generate)` is how text is streamed. A
coroutine sees those of the task that starts it (`contextvars`).
"""

from __future__ import annotations

import contextvars
import functools
import threading
import weakref
from asyncio.events import _get_running_loop
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from errata.core.hooks.context import HookContext
from errata.core.hooks.generation import Generation
from errata.core.hooks.hook import Hook, walk

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
    known to be open.
    """

    blocks: tuple[Block, ...] = ()
    stack: tuple[Hook, ...] = ()
    running: tuple[Hook, ...] = ()
    at: dict[str, tuple[Hook, ...]] = field(default_factory=dict)
    asks: bool = False
    checked: int = 0

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

#: thread -> (manager, the blocks of its model that were open where the thread was started)
_STARTED_WITH: weakref.WeakKeyDictionary[
    threading.Thread, list[tuple[weakref.ref[Any], tuple[Block, ...]]]
] = weakref.WeakKeyDictionary()


def started_with(manager: object) -> tuple[Block, ...]:
    """The blocks of `manager`'s model that were open where the current thread was started."""
    for known, blocks in _STARTED_WITH.get(threading.current_thread(), ()):
        if known() is manager:
            return tuple(b for b in blocks if b.open)
    return ()


@functools.cache
def follow_threads() -> None:
    """From now on a thread knows the blocks that are open where it is started.

    Python passes `contextvars` to new tasks, but not to new threads (before 3.14), and nowhere says
    which thread started which. So `Thread.start` is wrapped, once.
    """
    plain = threading.Thread.start

    @functools.wraps(plain)
    def start(self: threading.Thread) -> None:
        blocks = [(weakref.ref(m), m.caller().live.blocks) for m in list(MANAGERS) if m.opened]
        if blocks:
            _STARTED_WITH[self] = blocks
        plain(self)

    type.__setattr__(threading.Thread, "start", start)


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

    def restore(self, token: contextvars.Token[Caller | None]) -> None:
        self.variable.reset(token)
        self._mirror(self.variable.get())

    def _mirror(self, caller: Caller | None) -> None:
        no_blocks = caller is None or not caller.live.blocks
        self.here.caller = None if no_blocks or _get_running_loop() is not None else caller
