"""What a batch takes of memory, from its shape, and how many of its rows fit.

A batch grows with its rows: hidden states and keys per column, logits over the vocabulary per
answer token, activations of every block that a gradient goes through. All of it is known before the
batch runs, so that a batch is cut instead of failing. The counts are of tensors that live at the
same time; a library's work space is not in them. Where a device says all the same that
it is out of memory, the part that failed is cut in two (`in_parts`).

Shapes: T columns of a row, S of them that run with gradients, M target tokens, V vocabulary.
"""

from __future__ import annotations

import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from errata.core.errors import BadSpec, OutOfMemory
from errata.core.model.batch import Batch
from errata.core.model.linear_sites import LinearSites

#: of the memory that is free, what a batch may take where nothing else is said
SHARE = 0.5
#: logits that live at once in float32, besides those in the model's dtype: while answers are
#: scored, while continuations are, and in the backward of a loss
SCORED, CONTINUED, SEARCHED = 2, 4, 4
#: of the inputs and outputs of a block's linear modules: what lives while it runs, and what the
#: backward keeps where no weight is trained (counted on Llama's blocks)
RUNNING, KEPT = 0.6, 0.8

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
CGROUP = Path("/sys/fs/cgroup")

Item = TypeVar("Item")
Result = TypeVar("Result")


def parse_bytes(value: int | str) -> int:
    """Bytes from a number, or from a text such as `8GB` or `500MiB`. Raises BadSpec."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*", str(value).upper())
    size = int(float(read[1]) * UNITS[read[2]]) if read else 0
    if size < 1:
        raise BadSpec(
            f"cannot read the memory '{str(value)[:40]}'. Write a number and a unit: 8GB, 500MB."
        )
    return size


def as_text(size: float) -> str:
    """Bytes as people write them."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if size >= u[0]), (1e3, "kB"))
    return f"{size / unit:.3g} {name}"


def free_bytes(device: torch.device) -> int:
    """What is free on a device; on a CPU, in the control group of the process too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    import psutil  # type: ignore[import-untyped]

    free = int(psutil.virtual_memory().available)
    most, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    return free if most is None or used is None else min(free, max(0, most - used))


def _cgroup(name: str) -> int | None:
    """A number of the control group of this process (v2); None where it sets none."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
        text = (CGROUP / group.lstrip("/") / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class Costs:
    """Bytes by which a batch grows on one model.

    block: per column of a block while it runs, kept: for the backward, keys: in a KV cache.
    stream: a hidden state. vocabulary: V. size: bytes of a number. heads: query heads. vision: per
    entry of the vision tower. pixels: numbers of an image that make one entry.
    """

    depth: int
    block: int
    kept: int
    keys: int
    stream: int
    vocabulary: int
    size: int
    heads: int
    vision: int = 0
    pixels: int = 0

    def logits(self, tokens: float, copies: int) -> float:
        return tokens * self.vocabulary * ((self.size if self.size < 4 else 0) + 4 * copies)

    def pictures(self, batch: Batch) -> int:
        """Of the vision tower, for all images of a batch."""
        if not self.pixels:
            return 0
        numbers = sum(
            t.numel() for name, t in batch.inputs.items()
            if "pixel" in name and t.is_floating_point()
        )  # fmt: skip
        return numbers * self.size + numbers // self.pixels * self.vision

    def entering(self, columns: int, blocks: int = 0) -> float:
        """A row that runs without gradients, with keys and values of some blocks."""
        mask = columns * columns * (1 + self.size)
        return columns * (self.block + 3 * self.stream + blocks * self.keys) + mask

    def asking(self, columns: int, answer: int, scored: int, later: int = 0) -> float:
        """A row that is asked: the largest of prefill, scores, answer and later scores.

        answer: tokens that it may say. scored, later: tokens of the target, and of a continuation
        that is scored behind it.
        """
        cache = self.depth * self.keys
        logits = self.logits(1 + scored, 1)
        return max(
            self.entering(columns, self.depth),
            columns * (cache + self.stream) + self.logits(1 + scored, SCORED),
            (2 * columns + answer) * cache + logits + self.logits(1, SCORED),
            (2 * columns + later) * cache + logits + self.logits(later, CONTINUED),
        )

    def searching(self, runs: float, columns: int, blocks: int, tokens: float) -> float:
        """A row in a step with a backward. runs: columns that run with gradients, blocks: that the
        gradient goes through, tokens: whose logits are read.
        """
        scores = self.heads * runs * columns * (4 + self.size)
        earlier = (columns - runs) * self.keys
        kept = blocks * (runs * self.kept + scores + earlier) + columns * self.stream
        return kept + self.logits(tokens, SEARCHED)


class Budgeted(LinearSites):
    """The part of a backbone that knows its costs and its limit.

    memory: bytes that a batch may take beyond the weights; None: half of what is free when the
    first batch is made. Equal limits give equal batches.
    """

    model: nn.Module
    _memory: int | None = None
    _found: int | None = None

    @property
    def memory(self) -> int | None:
        return self._memory

    @memory.setter
    def memory(self, limit: int | str | None) -> None:
        self._memory = None if limit is None else parse_bytes(limit)

    @property
    def budget(self) -> int:
        """Bytes that a batch may take."""
        if self._memory is not None:
            return self._memory
        if self._found is None:
            places = {self.device_of(f"text.{i}.block") for i in range(self.depth)}
            self._found = int(SHARE * min(map(free_bytes, places)))
        return self._found

    @property
    @abstractmethod
    def width(self) -> int:
        """Hidden size d of the text stream."""

    @cached_property
    def costs(self) -> Costs | None:
        """What a batch costs, from the sizes of the modules; None for a model without blocks."""
        sites, size = self.hooks.sites, torch.empty((), dtype=self.dtype).element_size()
        if "text.0.block" not in sites:
            return None
        config: Any = getattr(self.model, "config", None)
        text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
        block, width = sites["text.0.block"].first, self.width
        numbers = _features(block, int(getattr(text, "num_experts_per_tok", None) or 1))
        keys = 2 * width
        if "text.0.attn.k" in sites and "text.0.attn.v" in sites:
            keys = self.weight("text.0.attn.k")[1] + self.weight("text.0.attn.v")[1]
        vocabulary = int(getattr(text, "vocab_size", None) or self.weight("head")[1])
        vision = sites["vision.0.block"].first if "vision.0.block" in sites else None
        return Costs(
            depth=self.depth, block=int(RUNNING * numbers * size),
            kept=int(KEPT * numbers * size) + (8 * width if size < 4 else 0),
            keys=keys * size, stream=width * size, vocabulary=vocabulary, size=size,
            heads=int(getattr(text, "num_attention_heads", None) or 1),
            vision=0 if vision is None else _features(vision, 1) * size,
            pixels=0 if vision is None else _patch(self.model),
        )  # fmt: skip

    def fitting(self, size: float, count: int) -> int:
        """How many of `count` rows, of so many bytes in all, fit: all, or a power of two, so that
        it is stable where the free memory is not.
        """
        if size <= self.budget:
            return count
        return 1 << (max(1, int(self.budget * count / size)).bit_length() - 1)

    def bytes_to_ask(self, batch: Batch, answer: int, later: int = 0) -> float:
        """Of all rows of a batch that is asked; see `Costs.asking`. 0 where nothing is known."""
        if self.costs is None:
            return 0.0
        target = max((len(t) for t in batch.targets), default=0)
        row = self.costs.asking(batch.ids.shape[1], answer, target, later)
        return max(batch.size * row, self.costs.pictures(batch))

    def bytes_to_enter(self, batch: Batch) -> float:
        """Of all rows of a batch that runs without gradients."""
        if self.costs is None:
            return 0.0
        row = self.costs.entering(batch.ids.shape[1])
        return max(batch.size * row, self.costs.pictures(batch))

    def bytes_to_search(self, batch: Batch, entry: int | None, runs: float | None = None) -> float:
        """Of all rows of a batch in a step with a backward.

        entry: the block that a step starts from, None: the whole model runs. runs: columns of a row
        that run with gradients, None: all.
        """
        if self.costs is None:
            return 0.0
        columns, blocks = batch.ids.shape[1], self.depth - max(0, entry or 0)
        tokens = 1 + max((len(t) for t in batch.targets), default=0)
        row = max(
            self.costs.searching(runs or columns, columns, blocks, tokens),
            self.costs.entering(columns, 0 if runs is None else 2 * blocks),
        )
        return max(batch.size * row, self.costs.pictures(batch))

    def columns_to_run(self) -> int:
        """How many columns of a batch fit when they run without gradients, one row or many."""
        if self.costs is None:
            return sys.maxsize
        return max(1, int(self.budget / (self.costs.block + 3 * self.costs.stream)))


def _features(block: nn.Module, active: int) -> int:
    """Inputs and outputs of all linear modules of a block; of experts, of the `active` ones."""
    total = experts = 0
    names = set()
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        numbers = 0
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            numbers = int(module.in_features) + int(module.out_features)
        elif isinstance(weight, torch.Tensor) and weight.dim() == 2:
            numbers = sum(weight.shape)
        expert = re.search(r"(?<!shared_)experts?\.(\d+)\.", f"{path}.")
        if expert:
            names.add(expert[0])
            experts += numbers
        else:
            total += numbers
    for path, p in block.named_parameters():  # experts that are one tensor [E, in, out]
        if p.dim() == 3 and "expert" in path:
            total += active * sum(p.shape[1:])
    return total + experts * active // max(1, len(names))


def _patch(model: nn.Module) -> int:
    """Numbers of an image that one entry of the vision tower is made of."""
    convolutions = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    first = next(convolutions, None)
    return 0 if first is None else int(first.weight[0].numel())


def in_parts(
    items: Sequence[Item], run: Callable[[Sequence[Item]], list[Result]], what: str
) -> list[Result]:
    """`run` of all items. Where the device has no memory for them, of each half.

    Raises OutOfMemory where one item alone is too much; what: one item, for the message.
    """
    try:
        return run(items)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        if len(items) == 1:
            raise OutOfMemory(
                f"there is no memory left for {what}. Use a smaller --dtype (bfloat16), shorter "
                "prompts, another --device, or --device-map auto."
            ) from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return in_parts(items[:half], run, what) + in_parts(items[half:], run, what)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device said that it has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
