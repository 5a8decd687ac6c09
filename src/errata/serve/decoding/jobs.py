"""What the engine is asked for, and what it says while it works."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from errata.core.patch import Patch
from errata.core.types import Prompt
from errata.serve.decoding.sampling import Sampling
from errata.serve.failures import Refused

_NUMBERS = itertools.count()


class Words(NamedTuple):
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Spoken:
    """A token of the answer. piece: the text that may now be shown. words: what the token adds to
    the text, with its log-probability; None unless asked for. top: those of the likeliest tokens.
    """

    token: int
    piece: str
    words: Words | None = None
    top: tuple[Words, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is there. reason: `stop` or `length`. rest: text that was held back."""

    text: str
    rest: str
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt was read. tokens: its length."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures (PIL, RGB), one per seed."""

    pictures: tuple[Any, ...]


Event = Begun | Spoken | Finished | Drawn | Refused


@dataclass(eq=False, kw_only=True)
class Job:
    """A piece of work. patch: None for the unedited model. cancelled: nobody waits for it."""

    patch: Patch | None = None
    cancelled: bool = False
    number: int = field(default_factory=lambda: next(_NUMBERS))


@dataclass(eq=False, kw_only=True)
class AskJob(Job):
    """A question. top: log-probabilities of so many tokens at each step; None: of none."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    tokens: int = 32
    stops: tuple[str, ...] = ()
    top: int | None = None


@dataclass(eq=False, kw_only=True)
class DrawJob(Job):
    """A picture per seed."""

    prompt: Prompt
    seeds: tuple[int, ...]


#: takes the events of one step, in order
Post = Callable[[list[tuple[Job, Event]]], None]
