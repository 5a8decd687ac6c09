"""A batch of prompts as tensors, the KV prefix that it can be continued from, and its answers.

Shapes: B rows, T columns of prompt and target (right padded), M target tokens, V vocabulary,
N images, d width of the hidden states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.types import Prompt, Scored


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts (and targets) as tensors, right padded; a target follows its prompt at once.

    lengths: [B] prompt tokens, image tokens included; a row's target starts there.
    vision:  [B, T] True for image tokens. image_rows: [N] the row of each image. image_sizes: [N]
    relative number of entries (tiles, positions) that the vision tower sees of each.
    image_keys: one key per image, equal for equal images. targets: ids per row, () for none.
    """

    prompts: tuple[Prompt, ...]
    inputs: Mapping[str, Tensor]
    lengths: Tensor
    vision: Tensor
    image_rows: Tensor
    image_sizes: Tensor
    image_keys: tuple[str, ...] = ()
    targets: tuple[tuple[int, ...], ...] = ()

    @property
    def size(self) -> int:
        return len(self.prompts)

    @property
    def mask(self) -> Tensor:
        return self.inputs["attention_mask"]

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"]


@dataclass(frozen=True, slots=True)
class Heads:
    """A block's attention: numbers of query and key heads, features per head, score scale."""

    queries: int
    keys: int
    size: int
    scale: float


@dataclass(frozen=True, eq=False)
class PrefixState:
    """The state that enters block `layer`: the blocks below have run and do not run again.

    layer -1 means: after the vision tower. `trunk` are the keywords of the text model's own
    forward, `stream` [B, T, d] the hidden states that enter the block, `cache` the keys and values
    of the lower blocks. `stack` was live below, with `rows` [B]; hooks that are added later may act
    at `layer` or above only. `memo` are the decisions that were made below. `same` [B, T]: flat
    index (row * T + column) of the first identical column, a column's own index if there is none;
    None if nothing is known. Identical columns lie in rows of equal `rows`. kept:
    `HookContext.kept` of its forwards.
    """

    batch: Batch
    layer: int
    trunk: Mapping[str, Any] = field(default_factory=dict)
    stream: Tensor | None = None
    cache: tuple[tuple[Tensor, Tensor], ...] | None = None
    tower: Any = None
    rows: Tensor | None = None
    stack: tuple[Hook, ...] = ()
    memo: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    same: Tensor | None = None
    kept: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SuffixState:
    """The last columns of some rows: the columns in front of them are finished.

    first [B]: the column that each row goes on at. `stream` [B, S, d] are the hidden states that
    enter block `layer` there, `trunk` the keywords of the text model's forward over these columns.
    finished: a KV cache of the earlier columns. rows, stack, memo: as in `PrefixState`.
    """

    batch: Batch
    layer: int
    first: Tensor
    trunk: Mapping[str, Any]
    stream: Tensor
    finished: Any
    rows: Tensor | None = None
    stack: tuple[Hook, ...] = ()
    memo: Mapping[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PrefixRow:
    """One row of a `PrefixState` without its padding; see `Backbone.split`.

    ids [t], vision [t], stream [t, d]: of its prompt and target. length: tokens of the prompt.
    layer: the block that the stream enters. keywords: the other arguments of the model's
    forward, in a form that only its backbone reads.
    """

    prompt: Prompt
    target: tuple[int, ...]
    length: int
    ids: Tensor
    vision: Tensor
    layer: int
    stream: Tensor
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.ids, self.vision, self.stream)
        values = list(self.keywords.values())
        while values:
            value = values.pop()
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                values += value


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy continuation: ids before the stop, and whether a stop was reached before the cap."""

    ids: tuple[int, ...]
    stopped: bool


class Question(ABC):
    """One prefilled batch. One `HookContext` lives exactly as long as this object."""

    batch: Batch
    ctx: HookContext

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """[B, 1 + M, V]: entry j predicts target token j; entry len(target) the token after it."""

    @abstractmethod
    def scores(self) -> list[Scored]:
        """Scores of the batch's targets under teacher forcing, from the prefill itself."""

    @abstractmethod
    def greedy(
        self,
        caps: Sequence[int],
        free: Sequence[bool] | None = None,
        lines: Sequence[int] | None = None,
    ) -> list[Generated]:
        """The greedy answer of each row, at most caps[b] tokens.

        An answer ends at EOS or after its last line. Blank lines do not count, so that an answer
        may begin with a line break. free: [B] rows of free text, which no line break ends. lines:
        [B] how many lines the answers have; by default 1.
        """

    @abstractmethod
    def score(self, ids: Sequence[Sequence[int]]) -> list[Scored]:
        """Scores of other continuations of the prompts under teacher forcing."""

    @abstractmethod
    def feed(self, ids: Tensor) -> Tensor:
        """Appends ids [B, m] to the prompts (not to the targets), for good: logits [B, m, V]."""

    @abstractmethod
    def top(self, k: int) -> list[tuple[tuple[int, ...], ...]]:
        """The k likeliest ids, in order, at every real position of prompt and target."""


class GrowingAnswer(ABC):
    """An answer, token by token, that ends as `Question.greedy` ends one.

    ids: of its tokens so far. stopped: None while it goes on; then whether it ended by itself, or
    (False) at its cap.
    """

    ids: list[int]
    stopped: bool | None

    @abstractmethod
    def add(self, token: int) -> None:
        """Adds the next token, or ends the answer."""


class DecodeBatch(ABC):
    """Rows of several questions that are decoded together: they join and leave between steps.

    A row attends to its own prompt and answer alone, and keeps what was decided for its question.
    size: number of rows. `Backbone.decode_batch` makes one for some hooks.
    """

    size: int

    @abstractmethod
    def asking(self) -> AbstractContextManager[None]:
        """Inside, the hooks are live: a question that is to join is encoded and asked here."""

    @abstractmethod
    def join(self, question: Question) -> None:
        """All rows of a question that was asked inside `asking`, behind the rows that are there."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay, in order."""

    @abstractmethod
    def feed(self, ids: Tensor) -> Tensor:
        """Appends one token to each row, ids [B]: logits [B, V] of the next one."""
