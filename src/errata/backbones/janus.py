"""Janus: one trunk that says and draws, split at the heads.

A picture is written token by token: the text model reads the prompt and the begin-of-image token,
its last hidden state goes through `generation_head` (not the language model head), and the tokens
become pixels in a VQ decoder. `model.generate(generation_mode="image")` does all of it; guidance
runs the same text model on a second row with an empty prompt. Every text block reaches a picture.

One seed is drawn at a time, since the library samples with one random state for all rows.

Drawing settings: guidance, temperature, top_k, top_p, do_sample.
Source: Chen et al. 2025 (Janus-Pro); the class of transformers.

Shapes: B prompts, T tokens of a prompt, R = 2 rows of a drawing (with the prompt, without).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from errata.backbones import _folders
from errata.backbones._drawing.columns import tokens_of_span
from errata.backbones._identity import core
from errata.backbones._overrides import forward_as
from errata.backbones.hf_vlm import HfVlm
from errata.core.errors import BadBackbone, BadSpec
from errata.core.hooks.context import HookContext, Site
from errata.core.hooks.manager import HookManager
from errata.core.model.generation import ImageGenerator, Stage
from errata.core.types import Prompt

GUIDANCE = 5.0  # where neither the model nor the user names one; the library's own
_SETTINGS = ("temperature", "top_k", "top_p", "do_sample")


class Janus(HfVlm, ImageGenerator):
    """`JanusForConditionalGeneration`: answers about pictures, and draws them by tokens."""

    bundled: ClassVar[Mapping[str, str]] = {}
    capabilities = frozenset({"text", "image", "generate", "resume", "draw"})

    #: keywords of `generate`
    sampling: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        super().__init__(model, processor, **options)
        head = core(model).get_submodule("model.generation_head")
        self.layout.sites.append(Site("draw.logits", head, head, "draw"))
        self.layout.paths["draw.logits"] = "model.generation_head"
        self.hooks = HookManager.of(model, lambda _: self.layout.sites)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "janus"

    @classmethod
    def load(cls, name: str, *, drawing: Mapping[str, Any] | None = None, **options: Any) -> Janus:
        """As `HfVlm.load`; drawing: settings of its drawings."""
        sampling = _sampling(dict(drawing or {}), name)
        backbone = super().load(name, **options)
        assert isinstance(backbone, Janus)
        backbone.drawing, backbone.sampling = dict(drawing or {}), sampling
        return backbone

    @classmethod
    def wrap(
        cls,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> Janus:
        """As `HfVlm.wrap`; drawing: settings of its drawings."""
        sampling = _sampling(dict(drawing or {}), name)
        backbone = super().wrap(model, processor, name=name, style=style)
        assert isinstance(backbone, Janus)
        backbone.drawing, backbone.sampling = dict(drawing or {}), sampling
        return backbone

    def block_of(self, site: str) -> int:
        return self.depth - 1 if site.startswith("draw.") else super().block_of(site)

    def path(self) -> tuple[Stage, ...]:
        """Hidden states of the prompt, and the logits of each picture token."""
        return Stage("tap", "final_norm"), Stage("logits", "draw.logits")

    def facts(self) -> Mapping[str, Any]:
        return {"blocks that reach the picture": f"all {self.depth}", **super().facts()}

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        assert seeds, "draw needs at least one seed"
        numbers = range(len(prompts)) if rows is None else rows.tolist()
        return [
            [self._picture(self.rewritten(prompt, row), row, seed) for seed in seeds]
            for prompt, row in zip(prompts, numbers, strict=True)
        ]

    def _inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        """Ids and mask [1, T] of a prompt that is drawn, as the processor makes them."""
        made = self.processor(
            text=self.formatted(prompt), generation_mode="image", return_tensors="pt"
        )
        device = self.device_of("embed")
        return {k: made[k].to(device) for k in ("input_ids", "attention_mask")}

    def _picture(self, prompt: Prompt, row: int, seed: int) -> Any:
        root: Any = core(self.model)
        begin = (getattr(root.generation_config, "generation_kwargs", None) or {}).get(
            "boi_token_id"
        )
        if begin is None:
            raise BadBackbone(
                f"the generation_config.json of {self.name} names no boi_token_id in its "
                "generation_kwargs, the token that begins a picture. Copy the file from the "
                "model's hub page."
            )
        guidance = root.generation_config.guidance_scale or GUIDANCE
        inputs = self._inputs(prompt)
        devices = [self.device_of("embed")] if self.device_of("embed").type == "cuda" else []
        with (
            self._live(prompt, row, inputs["attention_mask"]),
            torch.random.fork_rng(devices),
            _folders.forward_errors(self.name),
        ):
            torch.manual_seed(seed)
            tokens = type(root).generate(
                root, **inputs, generation_mode="image", num_return_sequences=1,
                **{"do_sample": True, "guidance_scale": guidance, **self.sampling},
            )  # fmt: skip
            pixels = root.decode_image_tokens(tokens)
        images = self.processor.image_processor
        mean, std = (np.array(v) for v in (images.image_mean, images.image_std))
        picture = (pixels[0].float().cpu().numpy() * std + mean).clip(0, 1) * 255
        return Pillow.fromarray(picture.round().astype(np.uint8))

    @contextmanager
    def _live(self, prompt: Prompt, row: int, mask: Tensor) -> Iterator[None]:
        """Inside, calls of the text model are one question, from the prompt to the last token."""
        rows = torch.full((2,), row)
        real = mask.repeat(2, 1)
        columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        ctx = self.hooks.context(
            lengths=(real * columns).max(1).values, mask=real, rows=rows,
            vision=torch.zeros_like(real, dtype=torch.bool),
            image_rows=torch.zeros(2, dtype=torch.long), prompt_rows=torch.tensor([True, False]),
        )  # fmt: skip
        for hook in self.hooks.running:
            if hook.reads_prompts:
                hook.read([prompt] * 2, self, ctx)
        forward, step = self.text.forward, 0
        last = int(core(self.model).get_submodule("model.vision_model").config.num_image_tokens)  # type: ignore[union-attr,arg-type]

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal step
            size = kwargs["inputs_embeds"].shape[1]
            ctx.shape, ctx.moment = (2, size), step / last
            if step:
                ctx.prefilled = True
                ctx.mask = torch.nn.functional.pad(real, (0, step), value=1)
                ctx.vision = torch.zeros_like(ctx.mask, dtype=torch.bool)
            elif self.hooks.deciding_ahead():
                self._decide(forward, args, kwargs, ctx)
            step += 1
            return forward(*args, **kwargs)

        with self.hooks.forward(), self.hooks.question(ctx), forward_as(self.text, run):
            yield

    def _decide(self, forward: Any, args: Any, kwargs: Any, ctx: HookContext) -> None:
        """Runs the prompt once for hooks that decide from a block above the one they change."""
        own = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "cache")}
        ctx.dry_run = True
        forward(*args, **{**own, "use_cache": False})
        ctx.dry_run, ctx.shape = False, (2, kwargs["inputs_embeds"].shape[1])

    def conditioning_columns(
        self, prompts: Sequence[Prompt], subjects: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        masks, spans = [], []
        for b, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            inputs = self._inputs(self.rewritten(prompt, b))
            ids, real = (inputs[k][0].cpu() for k in ("input_ids", "attention_mask"))
            held = torch.zeros(len(ids), dtype=torch.bool)
            found = tokens_of_span(self.tokenizer, ids.tolist(), real.bool().tolist(), subject)
            held[found] = True
            masks.append(real.bool())
            spans.append(held)
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(masks, batch_first=True), pad(spans, batch_first=True)


def _sampling(drawing: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Keywords of `generate` for the settings of a drawing. Raises BadSpec."""
    out = {}
    for key, value in drawing.items():
        if key == "guidance":
            out["guidance_scale"] = value
        elif key in _SETTINGS:
            out[key] = value
        else:
            raise BadSpec(
                f"{name} draws by tokens, without a setting '{key}'. It takes: guidance, "
                f"{', '.join(_SETTINGS)}."
            )
    return out
