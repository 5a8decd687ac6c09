"""Counterfactual: a small model that answers questions in an edit's scope (SERAC's second model).

It changes the input of the backbone's head. For every answer token it reads:

- the hidden state at the answer position (the head's input), which depends on image, question and
  the answer so far;
- the question: its prompt, read once at prefill from the hidden states that enter one block;
- the edit: its prompt (image and question), read in the same way, and for each token of its answer
  the token's embedding, the embedding of the token before it, and the hidden state at the answer
  position that predicts it.

The output is a next-token distribution from the backbone's own head; no answer is copied from the
edit. Earlier answer tokens act through the present hidden state only, and the prompt is read at
prefill only, so decoding with a KV cache and without give the same answer.

The network is stored in `state`, named by its hash (meta `speaker`, tensors `speaker.*`).

A row patch: row k is edit k. Float32 whatever the backbone's dtype.

Shapes: B rows, m requested columns, T columns, K edits, S slots, n answer tokens, d, w, V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from errata.core.hooks.context import HookContext
from errata.core.patch import Patch
from errata.networks.reader import CrossBlock, Reader, prompt_columns
from errata.networks.trained import trained

if TYPE_CHECKING:
    from errata.core.state import State


class CounterfactualNetwork(nn.Module):
    """`slots` vectors represent a prompt; `blocks` cross-attend to them at each answer token."""

    def __init__(
        self, into: int, width: int, *, slots: int = 8, blocks: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.settings = {
            "into": into, "width": width, "slots": slots, "blocks": blocks, "heads": heads,
        }  # fmt: skip
        self.question = Reader(into, width, slots=slots, blocks=2, heads=heads)
        self.stated = Reader(into, width, slots=slots, blocks=2, heads=heads)
        self.norm_tokens = nn.ModuleList(nn.LayerNorm(into) for _ in range(3))
        self.tokens = nn.Linear(3 * into, width)
        self.mix = nn.Linear(width, width)
        self.kinds = nn.Parameter(torch.zeros(3, width))
        self.norm_in = nn.LayerNorm(into)
        self.into = nn.Linear(into, width)
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, into)

    @classmethod
    def of(cls, state: State) -> CounterfactualNetwork:
        """The trained network of a state."""
        return trained(state, lambda: cls(**state.meta["speaker"]), "speaker.")

    def start(self) -> None:
        """Initialises the output to zero: before training it answers as the backbone."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def read_edit(
        self,
        prompt: tuple[Tensor, Tensor, Tensor],
        answer_Kn3d: Tensor,
    ) -> Tensor:
        """[K, S + n, w] from `Reader`'s arguments for the edit's prompt and, per answer token,
        (its embedding, the embedding of the token before it, the hidden state that predicts it).
        """
        parts = [norm(answer_Kn3d[:, :, i]) for i, norm in enumerate(self.norm_tokens)]
        tokens = self.mix(nn.functional.gelu(self.tokens(torch.cat(parts, dim=-1))))
        return torch.cat([self.stated(*prompt) + self.kinds[0], tokens + self.kinds[1]], dim=1)

    def read_question(self, stream: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """[B, S, w]; arguments as `Reader`'s."""
        slots: Tensor = self.question(stream.float(), mask, last.float()) + self.kinds[2]
        return slots

    def forward(self, state_Bmd: Tensor, memory_BSw: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, m, d] hidden states that replace the head's input."""
        x = self.into(self.norm_in(state_Bmd.float()))
        for block in self.blocks:
            x = block(x, memory_BSw, mask_BS)
        changed: Tensor = state_Bmd.float() + self.out(self.norm_out(x))
        return changed


class Counterfactual(Patch):
    """Row k answers as if edit k were true. memory [K, S + n, w], real [K, S + n]."""

    memory: Tensor
    real: Tensor

    def __init__(
        self,
        net: CounterfactualNetwork,
        site: str,
        memory: Tensor,
        real: Tensor,
        *,
        state: str = "",
    ) -> None:
        super().__init__((site, "head"))
        self.net, self.site, self.state = net, site, state
        self.observes = frozenset({site})
        self.rows = len(memory)
        self.register_buffer("memory", memory.detach().float())
        self.register_buffer("real", real.bool())

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if site == self.site:
            ctx.decide(self, self.site, lambda: self._question(x, ctx))
            return y
        question_BSw = ctx.decide(self, self.site, lambda: self._question(x, ctx))
        rows = ctx.rows_of(site, x)
        question_real_BS = torch.ones(question_BSw.shape[:2], dtype=torch.bool, device=x.device)
        memory = torch.cat([self.memory[rows], question_BSw.to(x.device)], dim=1)
        real = torch.cat([self.real[rows], question_real_BS], dim=1)
        return ctx.call("head", self.net(x, memory, real).to(x.dtype))

    def _question(self, x: Tensor, ctx: HookContext) -> Tensor:
        last = ctx.last_prompt(x, self)
        return self.net.read_question(x, prompt_columns(ctx, x.shape[1]).to(x.device), last)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        """All edits of the patches, in order; they share one network."""
        longest = max(p.memory.shape[1] for p in patches)

        def pad(t: Tensor) -> Tensor:
            gap = t.new_zeros((t.shape[0], longest - t.shape[1], *t.shape[2:]))
            return torch.cat([t, gap], dim=1)

        memory = torch.cat([pad(p.memory) for p in patches])
        real = torch.cat([pad(p.real) for p in patches])
        return cls(patches[0].net, patches[0].site, memory, real, state=patches[0].state)

    def keep(self, index: Sequence[int]) -> Self | None:
        memory, real = self.memory[list(index)], self.real[list(index)]
        return type(self)(self.net, self.site, memory, real, state=self.state)

    def site_of(self, tensor: str) -> str:
        return "head"

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.state, "a patch whose network is in no state cannot be saved"
        tensors = {"head/memory": self.memory, "head/real": self.real}
        return {"site": self.site, "state": self.state}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises MissingState where the trained network is not on this machine."""
        from errata.io import states

        digest = str(settings["state"])
        net = CounterfactualNetwork.of(states.find(digest))
        memory, real = tensors["head/memory"], tensors["head/real"]
        return cls(net, settings["site"], memory, real, state=digest)
