"""What a backbone is: a model and its processor, seen as named sites, asked in batches.

The only place that knows module paths is a backbone file. Everybody else speaks of sites
(`text.{i}.{in,block,attn,attn.q,.k,.v,.o,mlp,mlp.up,.gate,.down}`, `embed`, `vision.{i}...`,
`bridge`, `bridge.{linear}`, `final_norm`, `head`), batches and questions.

Shapes: B rows, T columns of prompt and target (right padded), V vocabulary, N images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errata.core.errors import BadBackbone, BadSpec
from errata.core.hooks.manager import HookManager, Site
from errata.core.patch import Patch, check_model, joined
from errata.core.types import Prompt, Scored


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts (and targets) as tensors, right padded; the target follows its prompt at once.

    lengths: [B] prompt tokens, image tokens included; a row's target starts there.
    vision:  [B, T] True for image tokens. image_rows: [N] whose image is whose. image_sizes: [N].
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
    """The state that enters block `layer`: what lies below has run and will not run again.

    layer -1 means: after the vision tower. `trunk` are the keywords of the text model's own
    forward, `stream` [B, T, d] the input of the block, `cache` the keys and values of the lower
    blocks. `stack` was live below, with `rows` [B]; only patches that act at `layer` or above may
    be added later. `memo` are the decisions that were made below. `same` [B, T]: the place, rows
    and columns counted together, of the first column that a column equals, its own where it equals
    none; None where nothing is known. Equal columns lie in rows of equal `rows`.
    """

    batch: Batch
    layer: int
    trunk: Mapping[str, Any] = field(default_factory=dict)
    stream: Tensor | None = None
    cache: tuple[tuple[Tensor, Tensor], ...] | None = None
    tower: Any = None
    rows: Tensor | None = None
    stack: tuple[Patch, ...] = ()
    memo: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    same: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy continuation: ids before the stop, and whether a stop was reached before the cap."""

    ids: tuple[int, ...]
    stopped: bool


class Question(ABC):
    """One prefilled batch. One `HookContext` lives exactly as long as this object."""

    batch: Batch

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """[B, 1 + M, V]: entry j predicts target token j; a row's last is behind its target."""

    @abstractmethod
    def scores(self) -> list[Scored]:
        """The batch's targets under teacher forcing, from the prefill itself."""

    @abstractmethod
    def greedy(self, caps: Sequence[int], free: Sequence[bool] | None = None) -> list[Generated]:
        """The greedy answer of each row, at most caps[b] tokens; ends at EOS or a line break.

        free: [B] rows of free text, which line breaks do not end.
        """

    @abstractmethod
    def score(self, ids: Sequence[Sequence[int]]) -> list[Scored]:
        """Other continuations of the prompts under teacher forcing."""

    @abstractmethod
    def feed(self, ids: Tensor) -> Tensor:
        """Appends ids [B, m] to the prompts (not the targets) and keeps them: logits [B, m, V]."""

    @abstractmethod
    def top(self, k: int) -> list[tuple[tuple[int, ...], ...]]:
        """The k likeliest ids, in order, at every real position of prompt and target."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What an edit must cross on its way to a picture: the output of `site` while drawing.

    name: `tap` (the text states that are consumed), `projected`, `blocks.{i}`, `velocity`. They are
    read by a patch at `site`, inside the real call of `draw`; the picture itself comes after them.
    """

    name: str
    site: str


class Backbone(ABC):
    """A frozen model behind ports.

    `capabilities`: `text`, `image` (takes pictures), `generate`, `resume`, `draw` (makes pictures).
    """

    plugin_kind: ClassVar[str] = "backbones"
    #: models that ship with errata, and the benchmark that each was made for
    bundled: ClassVar[Mapping[str, str]] = {}
    name: str
    revision: str = ""
    capabilities: frozenset[str] = frozenset()
    #: what stands between a rationale and the prompt that is drawn
    glue: str = "\n\n"
    #: how a prompt is written (raw, easyedit, chat); "" if the model takes it in one way only
    style: str = ""
    #: site -> path of its module in the model; sites that the model lacks (for `errata doctor`)
    site_paths: Mapping[str, str] = MappingProxyType({})
    missing_sites: Sequence[str] = ()
    model: nn.Module
    hooks: HookManager

    @classmethod
    @abstractmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        """Whether this file handles a model with this `config.json`."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of text blocks L."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Hidden size d of the text stream."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Longest sequence, image tokens included."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over the stored tensors and the config."""

    @abstractmethod
    def encode(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str] | None = None,
        *,
        eos: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Batch:
        """Prompts and targets as one batch, after live patches have rewritten the prompts.

        One space between prompt and target, target stripped; `eos` appends the end token to
        targets. Raises TooLong, naming the row.
        """

    def shown(self, prompt: Prompt) -> str:
        """The text that is put to the tokenizer."""
        return prompt.text

    def processed(self, prompt: Prompt) -> Mapping[str, Any] | None:
        """What the model family's own processor makes of a prompt; None if there is none."""
        return None

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, stripped."""

    @abstractmethod
    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a continuation of `prompt`, as `encode` would append them."""

    def last_column(self, prompt: Prompt, span: str) -> int:
        """The column, in a row that `encode` makes of `prompt`, of the last token of `span`.

        `span` is text of the prompt; of several mentions the last whole one counts. Raises BadEdit.
        """
        raise BadBackbone(
            f"{self.name} cannot say where a word of a prompt is. Edit at the prompt's last token: "
            "--set token=last_prompt."
        )

    @abstractmethod
    def ask(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Any:
        """Context manager that yields a Question over `what` with the live patches."""

    @abstractmethod
    def logits(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Tensor:
        """[B, 1 + M, V] as `Question.logits`, with gradients, without a cache."""

    @abstractmethod
    def enter(
        self,
        what: Batch | PrefixState,
        layer: int,
        *,
        rows: Tensor | None = None,
        for_generation: bool = False,
    ) -> PrefixState:
        """Runs what lies below block `layer` once, unedited parts frozen; see `PrefixState`.

        From a state (of a lower block, not for generation) it goes on to block `layer`.
        """

    @abstractmethod
    def device_of(self, site: str) -> torch.device:
        """Where the site's weights (and so its patches) live; "" = the text model's first block."""

    def generate(
        self, batch: Batch, caps: Sequence[int], *, rows: Tensor | None = None
    ) -> list[Generated]:
        with self.ask(batch, rows=rows) as q:
            return q.greedy(caps)  # type: ignore[no-any-return]

    def resume(
        self, state: PrefixState, patch: Patch | None = None, *, rows: Tensor | None = None
    ) -> Tensor:
        """`logits` from a state on, with one more patch live."""
        with self.applied(patch):
            return self.logits(state, rows=rows)

    def entry(self, patch: Patch | None) -> int | None:
        """The highest layer that `patch` can be resumed from; None: it needs the whole model."""
        if patch is None:
            return self.depth - 1
        if patch.rewrites or any(s.startswith("vision") for s in patch.sites):
            return None
        edge = min((self.block_of(s) for s in patch.sites), default=self.depth - 1)
        return edge

    def block_of(self, site: str) -> int:
        """The text block of a site; the last one behind all blocks, -1 below the text model."""
        if site.startswith("text."):
            return int(site.split(".")[1])
        return self.depth - 1 if site in ("final_norm", "head") else -1

    def layer(self, index: int) -> int:
        """A text block by index, counted from the end when negative. Raises BadSpec."""
        found = index + self.depth if index < 0 else index
        if not 0 <= found < self.depth:
            raise BadSpec(
                f"{self.name} has text blocks 0 to {self.depth - 1} (or -{self.depth} to -1), "
                f"not {index}."
            )
        return found

    def site(self, name: str) -> Site:
        """A site by name. Raises BadSpec."""
        if name not in self.hooks.sites:
            some = sorted(n for n in self.hooks.sites if n.split(".")[0] == name.split(".")[0])[:12]
            near = ", ".join(some) or "see errata doctor"
            raise BadSpec(f"{self.name} has no site '{name}'. Near it: {near}.")
        return self.hooks.sites[name]

    def weight(self, site: str) -> tuple[int, int]:
        """(in, out) features of a linear site."""
        module = self.site(site).first
        weight = module.weight
        assert isinstance(weight, Tensor), site
        out, into = weight.shape[-2:]
        return int(into), int(out)

    def gated(self, site: str) -> bool:
        """Whether the FFN at `text.{i}.mlp` multiplies a gate with an up projection."""
        return f"{site}.gate" in self.hooks.sites

    @abstractmethod
    def activation(self, site: str) -> str:
        """Name of the FFN's activation: silu, relu, gelu or gelu_tanh."""

    @abstractmethod
    def heads(self, layer: int) -> Heads:
        """The attention of text block `layer`. Raises BadBackbone where it has another form."""

    def attention(self, batch: Batch, columns: Tensor) -> Tensor:
        """[L, B, h, Q, T] how much each head of each block looks at every column (they sum to 1).

        columns: [B, Q] who looks. As the model's own attention computes it, with the live patches.
        Raises BadBackbone where the model does not show its attention.
        """
        raise BadBackbone(f"{self.name} does not show its attention. Choose another model.")

    def path(self) -> tuple[Stage, ...]:
        """From the text model to the picture, in order. Raises BadBackbone."""
        raise BadBackbone(f"{self.name} draws no pictures. Choose a model that does: micro-umm.")

    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        """One PIL picture (RGB) per prompt and seed, with the live patches; prompts are text.

        A seed fixes the initial noise, equal for all prompts. Raises BadBackbone, TooLong.
        """
        raise BadBackbone(f"{self.name} draws no pictures. Choose a model that does: micro-umm.")

    def conditioning(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Tensor:
        """[B, T, c] what the picture's generator is given of each prompt, with gradients.

        The output of the `projected` stage; right in the columns of `mask`. Raises BadBackbone.
        """
        raise BadBackbone(f"{self.name} draws no pictures. Choose a model that does: micro-umm.")

    def reasoning(self, prompt: Prompt, category: str) -> Prompt:
        """Asks for a rationale of an image prompt that recalls a fact (a colour, a maker, ...).

        In the words that the model was trained with, where it was. Raises BadSpec.
        """
        return prompt.with_text(
            f"Think step by step about this image prompt: '{prompt.text}'. First recall the "
            f"{category} of what it names, then say what the picture must show, then write a full "
            "caption.\n1. [Knowledge Recall]"
        )

    @property
    def canvas(self) -> tuple[int, int]:
        """Image tokens of a picture that is drawn, and values of each. Raises BadBackbone."""
        raise BadBackbone(f"{self.name} draws no pictures. Choose a model that does: micro-umm.")

    def denoise(
        self, x_RNP: Tensor, moment_R: Tensor, given_RTc: Tensor, mask_RT: Tensor
    ) -> Tensor:
        """[R, N, P] the picture that the generator expects of x at a time, with gradients.

        x is `moment * picture + (1 - moment) * noise` on the `canvas`; `given` are rows of
        `conditioning`, real in the columns of `mask`. No guidance. Raises BadBackbone.
        """
        raise BadBackbone(f"{self.name} draws no pictures. Choose a model that does: micro-umm.")

    @contextmanager
    def applied(self, *patches: Patch | None) -> Iterator[None]:
        """The patches are live inside, on top of what is; on leaving, exactly what was before.

        Raises FingerprintMismatch for one that was made for another model.
        """
        outer = self.hooks.stack
        given = [p for p in patches if p is not None]
        for patch in given:
            check_model(patch, self)
            for name in patch.sites:
                self.site(name)
        self.hooks.switch((*outer, *given))
        try:
            yield
        finally:
            self.hooks.switch(outer)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """No patch is live inside; on leaving, exactly what was before."""
        outer = self.hooks.stack
        self.hooks.switch(())
        try:
            yield
        finally:
            self.hooks.switch(outer)

    def rewritten(self, prompt: Prompt, row: int = 0) -> Prompt:
        """The prompt after all live patches of its row have rewritten it, in order."""
        for patch in joined([p for live in self.hooks.stack for p in live.on_row(row)]):
            prompt = patch.rewrite(prompt, self, row)
        return prompt
