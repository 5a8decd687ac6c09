"""A backbone: a frozen model and its processor, with named sites, run on batches of prompts.

Only backbone files know module paths. All other code names sites
(`text.{i}.{in,block,attn,attn.q,.k,.v,.o,mlp,mlp.up,.gate,.down}`, `embed`, `vision.{i}...`,
`bridge`, `bridge.{linear}`, `final_norm`, `head`), batches and questions. Projections that are one
module in the model are one site, `attn.qkv` or `mlp.gate_up`.

Shapes: B rows, T columns of prompt and target (right padded), V vocabulary, n prompts, d width.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from errata.core.errors import BadBackbone, BadPatch, BadSpec, FingerprintMismatch, Notice
from errata.core.hooks.context import Site
from errata.core.hooks.hook import Hook
from errata.core.hooks.manager import HookManager
from errata.core.model.batch import (
    Batch,
    DecodeBatch,
    Generated,
    GrowingAnswer,
    Heads,
    PrefixRow,
    PrefixState,
    Question,
    SuffixState,
)
from errata.core.model.budget import Budgeted
from errata.core.model.live_patches import live_hooks, rewriting
from errata.core.model.outline import ModelOutline
from errata.core.patch import Patch, check_fingerprint, parts_below, remarks
from errata.core.state import State
from errata.core.types import Edit, Prompt, brief

P = TypeVar("P", bound=Patch)


def check_backbone(value: Any) -> None:
    """Raises BadBackbone for anything but a backbone."""
    if not isinstance(value, Backbone):
        raise BadBackbone(
            f"a {type(value).__name__} is given where a model is needed. Load one: "
            "errata.load(NAME_OR_FOLDER)."
        )


class Backbone(Budgeted):
    """A frozen model with a hook point at every site.

    `capabilities`: `text`, `image` (takes pictures), `generate`, `resume`, `draw` (makes pictures,
    see `errata.core.model.generation.ImageGenerator`).
    """

    plugin_kind: ClassVar[str] = "backbones"
    #: models that are loaded by their name alone -> the benchmark that each was made for, or ""
    bundled: ClassVar[Mapping[str, str]] = {}
    name: str
    revision: str = ""
    capabilities: frozenset[str] = frozenset()
    #: how a prompt is written (raw, easyedit, chat); "" if the model takes it in one way only
    style: str = ""
    #: site -> path of its module in the model; sites that the model lacks (for `errata doctor`)
    site_paths: Mapping[str, str] = MappingProxyType({})
    missing_sites: Sequence[str] = ()
    #: a site that the model lacks -> why, where that is known
    missing_because: Mapping[str, str] = MappingProxyType({})
    #: images are read by cross-attention: no column of a prompt is an image token
    images_beside: bool = False
    #: whether an edit is being made, for a model that not all of its blocks are of use to
    editing: bool = False
    model: nn.Module
    hooks: HookManager
    #: the folder of its weight files; None if it is not known
    source: Path | None = None

    def __repr__(self) -> str:
        numbers = sum(p.numel() for p in self.model.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        style = f", style {self.style}" if self.style else ""
        live = f", {len(self.hooks.stack)} live" if self.hooks.stack else ""
        return (
            f"{type(self).__name__}({self.name!r}, {type(self.model).__name__}, {self.depth} text "
            f"blocks, {numbers:,} numbers, {dtype} on {self.device_of('')}{style}{live})"
        )

    @classmethod
    @abstractmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        """Whether this file handles a model with this `config.json`."""

    @classmethod
    def wrap(
        cls, model: Any, processor: Any, *, name: str = "", style: str | None = None
    ) -> Backbone:
        """A backbone around a model in memory; see `errata.wrap`."""
        raise BadBackbone(
            f"{cls.__name__} wraps no model that is in memory. Load it from a folder: errata.load."
        )

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> ModelOutline | None:
        """Modules, sites and fingerprint of a model whose weights are not loaded.

        None where the family has no way to make one.
        """
        return None

    def outlined(self) -> ModelOutline:
        """The outline of this model, which has its weights."""
        sites = self.hooks.sites
        return ModelOutline(self.name, self.model, sites, self.source, self, self.revision)

    @property
    @abstractmethod
    def context(self) -> int:
        """Longest sequence, image tokens included."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over what the outputs depend on: weights, config, tokenizer, image processing."""

    def former_fingerprint(self) -> str:
        """What an older errata called this model; "" if it is not known."""
        return ""

    def as_loaded(self) -> bool:
        """Whether weights, config and tokenizer are as they were when the model was loaded."""
        return True

    def identified_by(self, fingerprint: str) -> bool:
        """Whether a fingerprint, of this errata or of an older one, is that of this model."""
        return fingerprint == self.fingerprint() or (
            bool(fingerprint) and fingerprint == self.former_fingerprint()
        )

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

    def formatted(self, prompt: Prompt) -> str:
        """The prompt as text for the tokenizer, with the template of its style."""
        return prompt.text

    def check_turns(self) -> None:
        """Raises BadEdit if a prompt takes no history here: the style writes no chat."""

    def processed(self, prompt: Prompt) -> Mapping[str, Any] | None:
        """The output of the model family's own processor; None if there is none."""
        return None

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, stripped."""

    def hashed(self, edit: Edit) -> Edit:
        """The edit with the sha256 of each of its pictures. Raises BadImage."""
        return edit

    @abstractmethod
    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a continuation of `prompt`, as `encode` would append them."""

    def last_column(self, prompt: Prompt, span: str) -> int:
        """The column, in a row that `encode` makes of `prompt`, of the last token of `span`.

        `span` is text of the prompt; of several mentions the last whole one counts. Raises BadEdit.
        """
        raise BadBackbone(
            f"{self.name} cannot locate a word in a prompt. Edit at the prompt's last token: "
            "--set token=last_prompt."
        )

    def first_column(self, prompt: Prompt, span: str) -> int:
        """The column of the first token of `span`, of the mention that `last_column` finds.

        That token may begin before it. Raises BadEdit.
        """
        raise BadBackbone(
            f"{self.name} cannot locate a word in a prompt, which this needs. Choose a model of "
            "another family."
        )

    @abstractmethod
    def ask(
        self,
        what: Batch | PrefixState,
        *,
        rows: Tensor | None = None,
        answers_only: bool = False,
    ) -> AbstractContextManager[Question]:
        """Context manager that yields a Question over `what` with the live hooks.

        answers_only: `Question.top` is not asked, so that a picture which several rows ask about
        may run once.
        """

    @abstractmethod
    def logits(
        self, what: Batch | PrefixState | SuffixState, *, rows: Tensor | None = None
    ) -> Tensor:
        """[B, 1 + M, V] as `Question.logits`, with gradients, without a cache.

        Of a `SuffixState` the columns in front of `first` are not valid.
        """

    @abstractmethod
    def enter(
        self,
        what: Batch | PrefixState,
        layer: int,
        *,
        rows: Tensor | None = None,
        for_generation: bool = False,
    ) -> PrefixState:
        """Runs the blocks below `layer` once, with the live hooks, without gradients.

        `what` may be the state of a lower block, which is continued up to block `layer`; not with
        `for_generation`, which also keeps the KV cache.
        """

    def suffix(self, state: PrefixState, first: Tensor) -> SuffixState | None:
        """The same rows from the columns first [B] on; what lies before is computed once, here.

        For hooks that are added later and act at these columns alone, from `state.layer` on. None
        where the model or a live hook needs whole rows.
        """
        return None

    def split(self, state: PrefixState) -> list[PrefixRow] | None:
        """The rows of a state that entered a block, so that they can be cached one by one.

        None where the model's forward takes something that cannot be cut into rows.
        """
        return None

    def concat(self, rows: Sequence[PrefixRow], owners: Tensor) -> PrefixState:
        """Rows that `split` gave, of any states at one block, as one state.

        owners [B]: the patch row of each, `PrefixState.rows`.
        """
        raise BadBackbone(f"{self.name} cannot put cached rows together.")

    def generate(
        self, batch: Batch, caps: Sequence[int], *, rows: Tensor | None = None
    ) -> list[Generated]:
        with self.ask(batch, rows=rows) as q:
            return q.greedy(caps)

    def growing(self, cap: int, lines: int = 1) -> GrowingAnswer:
        """An empty answer of at most `cap` tokens and `lines` lines (0: an end token ends it)."""
        raise BadBackbone(f"{self.name} does not answer token by token. Choose another model.")

    def decode_batch(self, *hooks: Hook) -> DecodeBatch | None:
        """No rows yet, with exactly these hooks live, a row patch among them.

        None where a continuation needs more than one row's own keys and values.
        """
        return None

    def resume(
        self, state: PrefixState, patch: Hook | None = None, *, rows: Tensor | None = None
    ) -> Tensor:
        """`logits` of a state, with one more live hook."""
        with self.applied(patch):
            return self.logits(state, rows=rows)

    def entry(self, hook: Hook | None) -> int | None:
        """The highest layer that `hook` can be resumed from; None: it needs the whole model."""
        if hook is None:
            return self.depth - 1
        if hook.rewrites or any(s.startswith("vision") for s in hook.sites):
            return None
        return min((self.block_of(s) for s in hook.sites), default=self.depth - 1)

    def block_of(self, site: str) -> int:
        """A site's text block: the last one for sites above the blocks, -1 for sites below them."""
        if site.startswith("text."):
            return int(site.split(".")[1])
        return self.depth - 1 if site in ("final_norm", "head") else -1

    @contextmanager
    def in_edit(self) -> Iterator[None]:
        """Inside, `layer` names blocks to edit."""
        before, self.editing = self.editing, True
        try:
            yield
        finally:
            self.editing = before

    def facts(self) -> Mapping[str, Any]:
        """What else there is to know about this model, for `errata doctor`."""
        return {}

    def layer(self, index: int) -> int:
        """A text block by index, counted from the end when negative. Raises BadSpec."""
        block = index + self.depth if index < 0 else index
        if not 0 <= block < self.depth:
            raise BadSpec(
                f"{self.name} has text blocks 0 to {self.depth - 1} (or -{self.depth} to -1), "
                f"not {index}."
            )
        return block

    def site(self, name: str) -> Site:
        """A site by name. Raises BadSpec."""
        if name not in self.hooks.sites:
            if name in self.missing_because:
                raise BadSpec(
                    f"{self.name} has no site '{name}': {self.missing_because[name]}. Use an "
                    "editor that acts elsewhere (lora at the attention, ike, serac); errata doctor "
                    "shows the sites."
                )
            block = ".".join(name.split(".")[:2])
            similar = sorted(n for n in self.hooks.sites if n.startswith(f"{block}."))
            similar = similar or sorted(n for n in self.hooks.sites if n.split(".")[0] == block)
            names = ", ".join(similar[:16]) or "see errata doctor"
            raise BadSpec(f"{self.name} has no site '{name}'. Similar ones: {names}.")
        return self.hooks.sites[name]

    @abstractmethod
    def activation(self, site: str) -> str:
        """Name of the FFN's activation: silu, relu, relu2, gelu, gelu_tanh or quick_gelu."""

    @abstractmethod
    def heads(self, layer: int) -> Heads:
        """The attention of text block `layer`. Raises BadBackbone where it has another form."""

    def attention(self, batch: Batch, columns: Tensor) -> Tensor:
        """[L, B, h, Q, T] attention weights of every head over all columns (they sum to 1).

        columns: [B, Q] the query columns. From the model's own attention, with the live hooks.
        Raises BadBackbone where the model does not show its attention.
        """
        raise BadBackbone(f"{self.name} does not show its attention. Choose another model.")

    def shipped_states(self, editor: str) -> Iterator[State]:
        """The prepared states of an editor that ship with this model."""
        return iter(())

    # -- hooks and patches --------------------------------------------------------------------

    @contextmanager
    def applied(self, *hooks: Hook | None) -> Iterator[None]:
        """Inside, these hooks are live on top of the others, for this thread or task alone.

        Such blocks may nest and cross. A thread that is started inside sees the hooks too, until
        the block ends. Raises FingerprintMismatch for a patch that was made for another model, and
        BadBackbone for a model whose modules were replaced. Warns of a patch that was found on top
        of one that is not there, and of edits that contradict each other.
        """
        added = [h for h in hooks if h is not None]
        for hook in added:
            if not isinstance(hook, Hook):
                raise BadPatch(
                    f"a patch is given as {brief(hook)}. Give patches one by one: the `.patch` of "
                    "a result, or errata.load_patch(FOLDER, model)."
                )
            if isinstance(hook, Patch):
                self.check_patch(hook)
            for name in hook.sites:
                self.site(name)
        self.hooks.tree.check()
        for line in remarks((*self.hooks.stack, *added), added):
            warnings.warn(line, Notice, stacklevel=3)
        with self.hooks.block(added, live_hooks):
            yield

    def only(self, *hooks: Hook) -> AbstractContextManager[None]:
        """Inside, exactly these hooks are live; on leaving, those before."""
        return self.hooks.block(hooks, live_hooks, alone=True)

    def merged_once(self, *hooks: Hook) -> Callable[[], AbstractContextManager[None]]:
        """As `only`, for a block that is opened again and again: the hooks are merged here, once,
        so that what they decide in one block holds in the next.
        """
        running = tuple(live_hooks(hooks))
        return lambda: self.hooks.block(hooks, lambda _: running, alone=True)

    def unedited(self) -> AbstractContextManager[None]:
        """Inside, no hook is live; on leaving, those before."""
        return self.only()

    def check_patch(self, patch: Patch, what: object = None) -> None:
        """Raises FingerprintMismatch if the patch, or a part of it, was made for another model.

        A patch of an older errata gets this model's fingerprint of today, so that it is merged with
        newer ones.
        """
        parts = list(parts_below(patch))
        names = {p.header.fingerprint: p.header for p in parts if p.header.fingerprint}
        now = self.fingerprint() if names else ""  # once: it looks at every weight
        for fingerprint, header in names.items():
            if fingerprint != now:
                check_fingerprint(header, self, what or f"a patch of '{header.editor}'")
        for header in (p.header for p in parts):
            self.check_style(header.style, what or f"a patch of '{header.editor}'")
        if names:
            for part in parts:
                if part.header.fingerprint not in ("", now):
                    part.header = replace(part.header, fingerprint=now)

    def check_state(self, state: State, what: str) -> None:
        """Raises FingerprintMismatch if `what`, this state, was made for another model."""
        if state.fingerprint and not self.identified_by(state.fingerprint):
            raise FingerprintMismatch(
                f"{what} was made for another model ({state.fingerprint[:12]}), not for "
                f"{self.name} ({self.fingerprint()[:12]}). Prepare it again on this model."
            )

    def marked(self, state: State | None, settings: Mapping[str, Any]) -> State | None:
        """A new state, with this model, its style and the settings that it belongs to."""
        if state is None:
            return None
        return replace(state, fingerprint=self.fingerprint(), settings=settings, style=self.style)

    def check_style(self, style: str, what: object) -> None:
        """Raises BadSpec for what was made for prompts that are written in another style."""
        if style and self.style and style != self.style:
            raise BadSpec(
                f"{what} was made for prompts in the style '{style}', but {self.name} is asked "
                f"in the style '{self.style}'. Load the model with style='{style}' "
                f"(--style {style}), or make the edit again."
            )

    @contextmanager
    def in_style(self, style: str) -> Iterator[None]:
        """Inside, prompts are written in another style, if the model knows more than one."""
        before = self.style
        self.style = style if before else before
        try:
            yield
        finally:
            self.style = before

    def place(self, patch: P) -> P:
        """The same patch with its tensors on the devices of their sites."""
        patch.to_devices(self.device_of)
        return patch

    # -- prompts ------------------------------------------------------------------------------

    def rewritten(self, prompt: Prompt, row: int = 0) -> Prompt:
        """The prompt after all live patches of its row have rewritten it, in order."""
        live = self.hooks.caller().live
        for patch in live.once(("rewriting", row), lambda: rewriting(live.stack, row)):
            prompt = patch.rewrite(prompt, self, row)
        return prompt

    def prompt_length(self, prompt: Prompt) -> int:
        """Tokens of the prompt, without the live patches. Raises TooLong."""
        with self.unedited():
            return int(self.encode([prompt]).lengths[0])

    def embed(self, prompts: Sequence[Prompt], *, images: bool = False) -> Tensor:
        """[n, d] unit vectors of prompts, from the unedited model.

        Mean of the hidden states that enter the middle block, centred within each row: over all
        tokens but the first, or with `images` over image tokens only.
        """
        with self.unedited():
            batch = self.encode(prompts)
            state = self.enter(batch, max(1, self.depth // 2))
        assert state.stream is not None
        mask = (batch.vision if images else batch.mask)[..., None].float().clone()
        if not images:
            mask[:, 0] = 0.0  # the BOS state is the same in all rows and has a very large norm
        mean = (state.stream.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean - mean.mean(-1, keepdim=True), dim=-1).cpu()
