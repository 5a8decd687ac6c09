"""micro-umm: one model that answers questions and draws (`_micro_umm` has its classes).

The text model is a Llama. `draw` runs it once over the prompts, takes the hidden states after its
final norm (the *tap*), projects them (site `bridge`), and samples a picture with the generator
(sites `draw.{i}.block`, `draw.velocity`). Sites of the generator get [rows, image tokens, .]: one
row per prompt and seed, then the same rows without a prompt, for guidance.

Shapes: B prompts, s seeds, R = B * s pictures, T prompt tokens, c width of the generator, N image
tokens, P values of a patch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from errata.backbones import _folders, _sites, _tokens, _weights
from errata.backbones._micro_umm import MicroUmm as Model
from errata.backbones._micro_umm import MicroUmmConfig, from_patches
from errata.backbones._text import TextBackbone
from errata.core.errors import BadSpec, NotFinite
from errata.core.hooks.context import Site
from errata.core.hooks.manager import HookManager
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.generation import ImageGenerator, Stage
from errata.core.model.outline import ModelOutline
from errata.core.types import Prompt
from errata.synthetic.shapes import language
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS


def _check_raw(name: str, style: str | None) -> None:
    if style not in (None, "raw"):
        raise BadSpec(f"{name} has no prompt style '{style}'. Use raw.")


class MicroUmmBackbone(TextBackbone, ImageGenerator):
    """A text model, a projector and a diffusion transformer."""

    bundled: ClassVar[Mapping[str, str]] = {"micro-umm": "unike_umm"}
    capabilities = frozenset({"text", "generate", "resume", "draw"})
    glue = language.GLUE

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        name: str = "",
        revision: str = "",
        source: Path | None = None,
        trusted: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self.revision = revision
        self.projector, self.generator = model.projector, model.generator
        assert isinstance(model.config, MicroUmmConfig)
        self.config = model.config
        self.layout = _sites.resolve(model.language_model)
        self.layout.missing = [m for m in self.layout.missing if m not in ("vision", "bridge")]
        self.layout.sites.extend(self._drawing_sites())
        names = {id(m): path for path, m in model.named_modules()}
        self.layout.paths = {s.name: names[id(s.first)] for s in self.layout.sites}
        self.site_paths, self.missing_sites = self.layout.paths, self.layout.missing
        self.text, self.blocks, self.head = self.layout.text, self.layout.blocks, self.layout.head
        self.tower = None
        self.hooks = HookManager.of(model, lambda _: self.layout.sites)
        self.text_config = model.config.text_config
        self.end_ids = _tokens.end_ids(tokenizer, model)
        self.line_breaks = _tokens.line_breaks(tokenizer)
        self.stop_ids = self.end_ids | self.line_breaks.keys()
        self.identify(tokenizer, source, trusted=trusted)

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == MicroUmmConfig.model_type

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        style: str | None = None,
        trust_remote_code: bool = False,
    ) -> MicroUmmBackbone:
        """A bundled name, a folder or a hub id. Raises BadBackbone with the library's reason."""
        from transformers import PreTrainedTokenizerFast

        _check_raw(name, style)
        path = _weights.bundled(name) if name in cls.bundled else name
        if name in cls.bundled and dtype == "auto":
            dtype = "float32"
        _folders.check_weights(Path(path))
        with _folders.load_errors(name, "micro-umm", "its configuration or weights"):
            loaded: Any = Model.from_pretrained(
                path,
                dtype=dtype,
                device_map=device_map,
                revision=revision or "main",
                output_loading_info=True,
            )
            model, info = loaded
            _folders.missing_weights(name, info["missing_keys"])
        with _folders.load_errors(name, "micro-umm", "its tokenizer"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, revision=revision or "main")
        model.requires_grad_(False)
        if device is not None:
            model.to(device)
        source = _weights.folder(path, revision, getattr(model.config, "_commit_hash", None))
        with _folders.load_errors(name, "micro-umm", "its parts do not fit together and"):
            return cls(model, tokenizer, name=name, revision=revision or "", source=source)

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> ModelOutline:
        """Configuration and tokenizer of a model whose weights are not loaded."""
        from transformers import PreTrainedTokenizerFast

        path = _weights.bundled(name) if name in cls.bundled else name
        version = revision or "main"
        with _folders.load_errors(name, "micro-umm", "its configuration or tokenizer"):
            config = MicroUmmConfig.from_pretrained(path, revision=version)
            with torch.device("meta"):
                model = Model(config)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, revision=version)
            sites = cls(model, tokenizer, name=name).hooks.sites.values()
        return _weights.outline_of(name, path, revision, model, sites, tokenizer)

    @classmethod
    def wrap(
        cls, model: Any, processor: Any, *, name: str = "", style: str | None = None
    ) -> MicroUmmBackbone:
        """Around a model in memory; see `errata.wrap`."""
        path = str(getattr(model.config, "_name_or_path", "") or "")
        name = name or _weights.short_name(path, cls.bundled) or type(model).__name__
        _check_raw(name, style)
        source = _weights.folder(path, None, getattr(model.config, "_commit_hash", None))
        return cls(model, processor, name=name, source=source, trusted=False)

    def _drawing_sites(self) -> list[Site]:
        sites = [Site("bridge", self.projector, self.projector)]
        for name in ("up", "down"):
            linear = getattr(self.projector, name)
            sites.append(Site(f"bridge.{name}", linear, linear))
        for i, block in enumerate(self.generator.blocks):
            sites.append(Site(f"draw.{i}.block", block, block, "draw"))
        return [*sites, Site("draw.velocity", self.generator, self.generator, "draw")]

    def block_of(self, site: str) -> int:
        """The sites of the generator lie above all text blocks."""
        if site.startswith(("bridge", "draw.")):
            return self.depth - 1
        return super().block_of(site)

    def reasoning(self, prompt: Prompt, category: str) -> Prompt:
        """The form of the training data: the prompt names one object, category is an attribute."""
        words = set(re.findall(r"[a-z]+", prompt.text))
        named = [o.name for o in OBJECTS if o.name in words]
        if category not in ATTRIBUTES or len(named) != 1:
            raise BadSpec(
                f"{self.name} writes rationales about one object of its world and its "
                f"{', '.join(ATTRIBUTES)}, not about the {category} of '{prompt.text[:60]}'. "
                f"Name one object, for example 'a photo of a {OBJECTS[0].name}'."
            )
        return Prompt.of(language.reasoning(category, named[0], prompt.text))

    # -- pictures -----------------------------------------------------------------------------

    def path(self) -> tuple[Stage, ...]:
        blocks = (Stage(f"blocks.{i}", f"draw.{i}.block") for i in range(self.config.depth))
        return (
            Stage("tap", "final_norm"),
            Stage("projected", "bridge"),
            *blocks,
            Stage("velocity", "draw.velocity"),
        )

    def conditioning(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Tensor:
        batch = what if isinstance(what, Batch) else what.batch
        rows = what.rows if rows is None and isinstance(what, PrefixState) else rows
        ctx = self.context_of(batch, rows)
        tap, _ = self._start(what, ctx, None)
        with self.hooks.forward(), self.hooks.question(ctx):
            projected: Tensor = self.projector(tap)
        return projected

    @property
    def canvas(self) -> tuple[int, int]:
        c = self.config
        return (c.side // c.patch) ** 2, 3 * c.patch**2

    def denoise(
        self, x_RNP: Tensor, moment_R: Tensor, conditioning_RTc: Tensor, mask_RT: Tensor
    ) -> Tensor:
        with self.hooks.forward():
            picture: Tensor = self.generator.picture(x_RNP, moment_R, conditioning_RTc, mask_RT)
        return picture

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        batch = self.encode(prompts, rows=rows.tolist() if rows is not None else None)
        x_RNP = self.drawn(batch, seeds, rows=rows)
        if not bool(x_RNP.isfinite().all()):
            raise NotFinite(
                f"{self.name}: a picture became infinite or not a number while it was drawn. Load "
                "with --dtype float32, or leave out the last edit."
            )
        side = from_patches(x_RNP.float().cpu(), self.config.patch)
        pixels = ((side.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)
        pictures = [Pillow.fromarray(p) for p in pixels]
        s = len(seeds)
        return [pictures[b * s : (b + 1) * s] for b in range(batch.size)]

    @torch.no_grad()
    def drawn(self, batch: Batch, seeds: Sequence[int], *, rows: Tensor | None = None) -> Tensor:
        """[R, N, P] the pictures of `draw` as floats, values about -1 to 1."""
        assert seeds, "draw needs at least one seed"
        ctx = self.context_of(batch, rows)
        tap, _ = self._start(batch, ctx, None)
        of_prompt = torch.arange(batch.size).repeat_interleave(len(seeds))
        with self.hooks.forward(), self.hooks.question(ctx):
            cond = self.projector(tap)[of_prompt.to(tap.device)]
            mask = batch.mask[of_prompt.to(batch.mask.device)].to(cond.device)
            null, first = torch.zeros_like(cond), torch.zeros_like(mask)
            null[:, :1], first[:, 0] = self.generator.null, 1
            cond, mask = torch.cat([cond, null]), torch.cat([mask, first])
            ctx.image_rows = torch.cat([of_prompt, of_prompt])
            x = self._noise(seeds).repeat(batch.size, 1, 1).to(cond)
            steps = self.config.steps
            for k in range(steps):
                ctx.moment = k / steps
                t = torch.full((2 * x.shape[0],), ctx.moment, dtype=x.dtype, device=x.device)
                with_prompt, without = self.generator(torch.cat([x, x]), t, cond, mask).chunk(2)
                x = x + (without + self.config.guidance * (with_prompt - without)) / steps
        return x

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """[s, N, P] initial noise of each seed, the same on every device."""
        rngs = [torch.Generator().manual_seed(s) for s in seeds]
        return torch.stack([torch.randn(self.canvas, generator=rng) for rng in rngs])
