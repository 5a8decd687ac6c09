"""Base of the models that write a picture token by token with their text model.

The library's own `generate` draws, one prompt and seed at a time: it samples with one random state
for all rows. A subclass gives the inputs, the call, and the stage of the logits. Guidance runs the
text model on other rows too; each stream of calls is a question of its own.

Shapes: R rows of a call, T tokens of a prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from errata.backbones import _folders
from errata.backbones._drawing.columns import tokens_of_span
from errata.backbones._overrides import forward_as
from errata.backbones.hf_vlm import HfVlm
from errata.core.errors import BadSpec
from errata.core.hooks.context import HookContext
from errata.core.model.generation import ImageGenerator
from errata.core.types import Prompt


class Stream(NamedTuple):
    """Calls of the text model that go on from each other. mask [R, T]: of their prompts.

    prompt_rows: which rows hold the prompt that is drawn.
    """

    mask: Tensor
    prompt_rows: Sequence[bool]


class TokenGenerator(HfVlm, ImageGenerator):
    """A vision-language model that also draws. settings: of its drawings."""

    bundled: ClassVar[Mapping[str, str]] = {}
    capabilities = frozenset({"text", "image", "generate", "resume", "draw"})
    settings: ClassVar[tuple[str, ...]] = (
        "guidance", "temperature", "top_k", "top_p", "do_sample",
    )  # fmt: skip
    drawing: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def load(cls, name: str, *, drawing: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """As `HfVlm.load`; drawing: settings of its drawings."""
        cls.check_settings(drawing or {}, name)
        return cls._with(super().load(name, **options), drawing)

    @classmethod
    def wrap(
        cls,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> Self:
        """As `HfVlm.wrap`; drawing: settings of its drawings."""
        cls.check_settings(drawing or {}, name)
        return cls._with(super().wrap(model, processor, name=name, style=style), drawing)

    @classmethod
    def _with(cls, backbone: Any, drawing: Mapping[str, Any] | None) -> Self:
        assert isinstance(backbone, cls)
        backbone.drawing = dict(drawing or {})
        return backbone

    @classmethod
    def check_settings(cls, drawing: Mapping[str, Any], name: str) -> None:
        """Raises BadSpec for settings that its drawings do not have."""
        if unknown := [key for key in drawing if key not in cls.settings]:
            raise BadSpec(
                f"{name} draws by tokens, without a setting '{unknown[0]}'. It takes: "
                f"{', '.join(cls.settings)}."
            )

    @property
    def sampling(self) -> dict[str, Any]:
        """Keywords of `generate`; tokens are sampled unless the settings say otherwise."""
        names = {"guidance": "guidance_scale"}
        shared = TokenGenerator.settings  # those of a subclass alone are no keywords
        given = {names.get(k, k): v for k, v in self.drawing.items() if k in shared}
        return {"do_sample": True, **given}

    def facts(self) -> Mapping[str, Any]:
        return {"blocks that reach the picture": f"all {self.depth}", **super().facts()}

    @abstractmethod
    def drawn_inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` [1, T] of a prompt that is drawn."""

    @abstractmethod
    def picture(self, prompt: Prompt, row: int) -> Any:
        """The picture of a prompt, by `generate` inside `live`; the seed is set."""

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        assert seeds, "draw needs at least one seed"
        numbers = range(len(prompts)) if rows is None else rows.tolist()
        return [
            [self._seeded(self.rewritten(prompt, row), row, seed) for seed in seeds]
            for prompt, row in zip(prompts, numbers, strict=True)
        ]

    def _seeded(self, prompt: Prompt, row: int, seed: int) -> Any:
        devices = [d for d in {self.device_of("embed")} if d.type == "cuda"]
        with torch.random.fork_rng(devices), _folders.forward_errors(self.name):
            torch.manual_seed(seed)
            return self.picture(prompt, row)

    @contextmanager
    def live(
        self, prompt: Prompt, row: int, streams: Sequence[Stream], tokens: int
    ) -> Iterator[None]:
        """Inside, calls of the text model belong to the streams in turn, each a question.

        tokens: of a picture. A question stays open until the next call: the heads follow.
        """
        asked = [self._question(prompt, row, stream) for stream in streams]
        forward, calls = self.text.forward, 0
        with ExitStack() as stack, ExitStack() as current:
            stack.enter_context(self.hooks.forward())

            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                step, k = divmod(calls, len(streams))
                calls += 1
                ctx, mask = asked[k], streams[k].mask
                current.close()
                current.enter_context(self.hooks.question(ctx))
                size = kwargs["inputs_embeds"].shape[1]
                ctx.shape, ctx.moment = (len(mask), size), step / tokens
                if step:
                    ctx.prefilled = True
                    ctx.mask = torch.nn.functional.pad(mask, (0, step), value=1)
                    ctx.vision = torch.zeros_like(ctx.mask, dtype=torch.bool)
                elif self.hooks.deciding_ahead():
                    self._decide(forward, args, kwargs, ctx)
                return forward(*args, **kwargs)

            stack.enter_context(forward_as(self.text, run))
            stack.callback(current.close)
            yield

    def _question(self, prompt: Prompt, row: int, stream: Stream) -> HookContext:
        mask = stream.mask
        columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        ctx = self.hooks.context(
            lengths=(mask * columns).max(1).values,
            mask=mask,
            rows=torch.full((len(mask),), row),
            vision=torch.zeros_like(mask, dtype=torch.bool),
            image_rows=torch.zeros(len(mask), dtype=torch.long),
            prompt_rows=torch.tensor(stream.prompt_rows),
        )
        for hook in self.hooks.running:
            if hook.reads_prompts:
                hook.read([prompt] * len(mask), self, ctx)
        return ctx

    def _decide(self, forward: Any, args: Any, kwargs: Any, ctx: HookContext) -> None:
        """Runs the prompt once for hooks that decide from a block above the one they change."""
        own = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "cache")}
        shape, ctx.dry_run = ctx.shape, True
        forward(*args, **{**own, "use_cache": False})
        ctx.dry_run, ctx.shape = False, shape

    def conditioning_columns(
        self, prompts: Sequence[Prompt], subjects: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        masks, spans = [], []
        for b, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            inputs = self.drawn_inputs(self.rewritten(prompt, b))
            ids, real = (inputs[k][0].cpu() for k in ("input_ids", "attention_mask"))
            held = torch.zeros(len(ids), dtype=torch.bool)
            found = tokens_of_span(self.tokenizer, ids.tolist(), real.bool().tolist(), subject)
            held[found] = True
            masks.append(real.bool())
            spans.append(held)
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(masks, batch_first=True), pad(spans, batch_first=True)
