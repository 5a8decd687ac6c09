"""The text model's own forward, entered at any block, and the head at the requested columns.

Blocks below the entry are bypassed and the hidden states are substituted; the rest is the model's
own code.

Shapes: B rows, T columns, M target tokens, m new tokens, V vocabulary, d hidden size.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from errata.backbones._overrides import forward_as, in_this_thread
from errata.backbones._pruning import (
    EarlierColumns,
    dedup_attention,
    dedup_keywords,
    last_block_at,
)
from errata.core.hooks.cache_names import cache_keywords
from errata.core.hooks.context import HookContext
from errata.core.hooks.dedup import DedupBatch
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch

#: what a model does to the output of its head
Finish = Callable[[Tensor], Tensor]


def unchanged(logits: Tensor) -> Tensor:
    return logits


def capped(cap: float | None) -> Finish:
    """Logits between -cap and cap; None: unchanged."""
    return (lambda logits: torch.tanh(logits / cap) * cap) if cap else unchanged


@functools.cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


class DecoderForward(Backbone, ABC):
    """A backbone over `text`, its `blocks` and `head`; `tower` is the vision tower.

    end_ids: end a free text. stop_ids: end an answer of one line. line_breaks: of these, the tokens
    with a line break, and the text that each has in front of it. finish: what the model does to the
    output of its head. suppressed: tokens that the model never answers.
    """

    text: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    tower: nn.Module | None
    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    line_breaks: Mapping[int, str] = MappingProxyType({})
    finish: Finish = staticmethod(unchanged)
    suppressed: tuple[int, ...] = ()
    #: the bridge is part of the tower's own forward (Qwen's merger): the tower cannot be skipped
    bridge_in_tower: bool = False
    #: the features of an image depend on the prompt (a Q-Former that reads the question)
    image_reads_prompt: bool = False

    @abstractmethod
    def context_of(self, batch: Batch, rows: Tensor | None) -> HookContext:
        """A new question about a batch."""

    @abstractmethod
    def whole_stream(
        self, batch: Batch, ctx: HookContext, columns: Tensor, tower: list[Any]
    ) -> Tensor:
        """Hidden states of a forward over prompts and targets, valid at `columns` [B, n]."""

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def before_end(self, ids: Sequence[int]) -> list[int] | None:
        """The ids before the text that ends an answer, for models that end with one; else None."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.blocks.parameters() if p.is_floating_point())

    def device_of(self, site: str) -> torch.device:
        module = self.hooks.sites[site].first if site in self.hooks.sites else self.blocks[0]
        for tensor in module.parameters():
            if tensor.device.type != "meta":
                return tensor.device
        hook = getattr(module, "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or "cpu")

    def run_text(
        self,
        trunk: Mapping[str, Any],
        ctx: HookContext,
        *,
        cache: Any = None,
        enter: tuple[int, Tensor] | None = None,
        columns: Tensor | None = None,
        dedup: DedupBatch | None = None,
        earlier: EarlierColumns | None = None,
    ) -> Tensor:
        """[B, T, d] last hidden states of the text model, from its input or block `enter[0]` on.

        enter: (block, hidden states that enter it). columns [B, n]: only these are needed, the
        others are not valid. dedup: identical columns run once. earlier: columns in front of these,
        for a deduplicated batch.
        """
        with ExitStack() as stack:
            stack.enter_context(self.hooks.forward())
            stack.enter_context(self.hooks.question(ctx))
            if self.hooks.direct.others() and earlier is None:
                dedup = None  # it replaces the attention of all threads
            if dedup is not None:
                assert enter is not None and cache is None
                trunk, enter = dedup_keywords(dedup, trunk), (enter[0], dedup.pack(enter[1]))
                stack.enter_context(self.hooks.deduplicated(dedup))
                stack.enter_context(dedup_attention(self.text, self.name, dedup, earlier))
            if columns is not None:
                places = (dedup or DedupBatch.all_distinct(ctx.shape, columns.device)).at(columns)
                sites = stack.enter_context(last_block_at(self.hooks, self.depth, places))
                # not in a search: other rounding there, which its steps would enlarge
                stack.enter_context(ctx.only(sites if cache is not None else (), columns))
            if enter is not None and enter[0] > 0:
                layer, stream = enter
                for block in self.blocks[:layer]:
                    stack.enter_context(
                        forward_as(block, lambda hidden_states, *a, **k: hidden_states)
                    )

                def substitute(_: nn.Module, args: Any, kwargs: Any) -> Any:
                    if args:
                        return (stream, *args[1:]), kwargs
                    return args, {**kwargs, "hidden_states": stream}

                handle = self.blocks[layer].register_forward_pre_hook(
                    in_this_thread(substitute), with_kwargs=True, prepend=True
                )
                stack.callback(handle.remove)
            out = self.text(**trunk, **cache_keywords(self.text, cache))
        last: Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
        return last if dedup is None else dedup.unpack(last)

    def logits_of(self, stream: Tensor, ctx: HookContext) -> Tensor:
        with self.hooks.forward(), self.hooks.question(ctx):
            logits: Tensor = self.head(stream)
        logits = self.finish(logits)
        if self.suppressed:
            never = torch.tensor(self.suppressed, device=logits.device)
            logits = logits.index_fill(-1, never, torch.finfo(logits.dtype).min)
        return logits.float()

    def answer_logits(self, stream: Tensor, batch: Batch, ctx: HookContext) -> Tensor:
        """[B, 1 + M, V] logits at the last prompt token and at the target tokens."""
        return self.logits_at(stream, self.answer_columns(batch), ctx)

    def logits_at(self, stream: Tensor, columns: Tensor, ctx: HookContext) -> Tensor:
        """[B, n, V] logits at columns [B, n] of the last hidden states."""
        rows = torch.arange(stream.shape[0], device=stream.device)[:, None]
        return self.logits_of(stream[rows, columns.to(stream.device)], ctx)

    @staticmethod
    def answer_columns(batch: Batch) -> Tensor:
        """[B, 1 + M] columns of the last prompt token and of the target tokens, then any column."""
        extra = max((len(t) for t in batch.targets), default=0)
        columns = batch.lengths[:, None] - 1 + torch.arange(1 + extra, device=batch.lengths.device)
        return columns.clamp(max=batch.ids.shape[1] - 1)

    @property
    def windowed(self) -> bool:
        """Whether some block counts columns: by a sliding window, or as positions of its own."""
        return "sliding_attention" in self.layer_types() or not _takes_positions(
            type(self.text).forward
        )

    @property
    def shares_pictures(self) -> bool:
        """Whether a picture's columns are the same in front of every question."""
        return self.layer_types() == {"full_attention"} and not self.image_reads_prompt

    @property
    def chunk(self) -> int:
        """Most columns of a batch with its continuation: blocks do not attend across chunks."""
        config: Any = getattr(self.text, "config", None)
        chunked = "chunked_attention" in self.layer_types()
        return int(config.attention_chunk_size) if chunked else 10**9

    def layer_types(self) -> set[str]:
        config: Any = getattr(self.text, "config", None)
        types = getattr(config, "layer_types", None)
        if types is not None:
            return set(types)
        if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
            return {"full_attention", "sliding_attention"}
        if getattr(config, "sliding_window", None) is not None:
            return {"sliding_attention"}
        chunked = getattr(config, "attention_chunk_size", None) is not None
        return {"chunked_attention" if chunked else "full_attention"}

    @cached_property
    def first_position(self) -> int:
        """The position id of the first token: behind a padding token's in fairseq's embeddings."""
        counted = [
            m for m in self.text.children() if hasattr(m, "create_position_ids_from_input_ids")
        ]
        padding: Any = getattr(counted[0], "padding_idx", None) if counted else None
        return 0 if padding is None else int(padding) + 1

    def next_positions(
        self, trunk: Mapping[str, Any], lengths: Tensor, offset: Tensor, m: int
    ) -> Tensor:
        """Position ids of m new tokens per row, after the prompt and `offset` [B] more tokens."""
        steps = offset[:, None] + torch.arange(m, device=offset.device)
        ids = trunk.get("position_ids")
        if isinstance(ids, Tensor) and ids.dim() == 3:  # axes of a multimodal rotary embedding
            ids = ids.expand(-1, lengths.shape[0], -1)
            last = ids[:, torch.arange(lengths.shape[0], device=ids.device), lengths - 1]
            return last[:, :, None] + 1 + steps
        first = lengths[:, None] + self.first_position
        if isinstance(ids, Tensor) and ids.dim() == 2:  # of a model that does not count from 0
            ids = ids.expand(lengths.shape[0], -1)
            first = ids.gather(1, lengths[:, None].to(ids.device) - 1) + 1
        # Clamped for rows that already ended: learned position embeddings end with the context.
        return (first + steps).clamp(max=self.context - 1)
