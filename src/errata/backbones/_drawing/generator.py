"""Base of the backbones that draw with somebody else's call: `draw`, `path` and what is read there.

A subclass gives the parts and the call; everything else is measured (`probe`) when the model is
loaded, in some encodings of a prompt and three drawings of one step. A call draws up to `together`
pictures: all seeds of a prompt, and prompts of equal length, so that none is padded for another and
a picture does not depend on what else is drawn. Whether the call can do so is measured too, when it
is first needed; if not, prompts are drawn one by one.

Shapes: B prompts, T columns of the conditioning, R rows of the generator.
"""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from errata.backbones import _tokens
from errata.backbones._drawing.calls import DrawingCall, NotTogether
from errata.backbones._drawing.columns import once, token_of, tokens_of_span
from errata.backbones._drawing.probe import WORDS, DrawingPath, PartOfPath, PathProbe
from errata.backbones._folders import load_errors
from errata.backbones._overrides import StopForward
from errata.backbones.hf_lm import HfLm
from errata.core.errors import BadSpec, TooLong, UserError
from errata.core.hooks.context import HookContext, Site
from errata.core.hooks.hook import Hook
from errata.core.hooks.manager import HookManager
from errata.core.model.generation import ImageGenerator, Stage
from errata.core.types import Prompt

#: mean difference of a picture that is drawn with others, per value from 0 to 1, in float32
_OFF = 1 / 255


class MeasuredGenerator(HfLm, ImageGenerator):
    """encoder: the module that the call gives the prompt to; generator: the one that draws.

    steps: of a drawing. together: the most pictures of one call. drawn_path: what was measured.
    """

    encoder: nn.Module
    generator: nn.Module
    steps: int
    drawn_path: DrawingPath
    together: int = 1
    #: text -> what `_tokens_given` found
    _given: dict[str, tuple[Tensor, Tensor, Tensor]]
    capabilities = frozenset({"text", "generate", "resume", "draw"})

    @abstractmethod
    def call(
        self, texts: Sequence[str], seeds: Sequence[int], *, steps: int, pixels: bool
    ) -> Sequence[Any]:
        """One float picture [H, W, 3] from 0 to 1 per text and seed; without `pixels` anything.

        Up to `together` pictures, those of a text one after another, each from a random state of
        its own.
        """

    def small(self) -> AbstractContextManager[None]:
        """Inside, pictures are as small as the model draws them; their path is the same."""
        return contextlib.nullcontext()

    def measure(self) -> list[Site]:
        """Measures the path; returns the sites of the generator."""
        probe = PathProbe(
            self.encoder,
            [self._inside(i) for i in range(self.depth)],
            self.generator,
            lambda text, seed: self.call([text], [seed], steps=1, pixels=False),
            self.name,
        )
        with load_errors(self.name, "model that draws", "its drawing"):
            self.drawn_path = probe.measure()
        return list(_sites_of(self.drawn_path))

    def _inside(self, block: int) -> nn.Module:
        """What writes to the hidden state inside a block: transformers hands out the output of a
        block before hooks on it run.
        """
        last = {s.name: s.last for s in self.layout.sites}
        return last.get(f"text.{block}.mlp") or last.get(f"text.{block}.attn") or self.blocks[block]

    def be_language_model(self, model: Any, language: Any, tokenizer: Any, style: Any) -> None:
        """Sets what a language model has, without its vision tower, and measures the drawing."""
        self._given = {}
        self._set_language_model(model, language, tokenizer)
        self.style = _tokens.style_of(tokenizer, style, self.name)
        text = [s for s in self.layout.sites if s.stream == "text"]
        names = {id(m): path for path, m in model.named_modules()}
        self.layout.sites = text
        self.hooks = HookManager.of(model, lambda _: text)
        sites = [*text, *self.measure()]
        self.site_paths = {s.name: names[id(s.first)] for s in sites}
        self.hooks = HookManager.of(model, lambda _: sites)
        self.finish = self._finish()

    # -- what an edit can reach ---------------------------------------------------------------

    def layer(self, index: int) -> int:
        block = super().layer(index)
        reads = self.drawn_path.reads
        if self.editing and block > reads:
            raise BadSpec(
                f"block {block} of {self.depth} cannot reach the picture: {self.name} draws from "
                f"what block {reads} gives. Edit blocks 0 to {reads}."
            )
        return block

    def block_of(self, site: str) -> int:
        if site.startswith(("bridge", "draw.", "tap")):
            return self.depth - 1
        return super().block_of(site)

    def path(self) -> tuple[Stage, ...]:
        p = self.drawn_path
        bridge = [Stage(part.path, f"bridge.{part.path}") for part in p.bridge[:-1]]
        bridge += [Stage("projected", "bridge")] * bool(p.bridge)
        tap = "tap" if p.bridge else f"text.{p.reads}.block"
        blocks = (Stage(f"blocks.{i}", f"draw.{i}.block") for i in range(len(p.blocks)))
        velocity = [Stage("velocity", "draw.velocity")] * (p.velocity is not None)
        return Stage("tap", tap), *bridge, *blocks, *velocity

    def facts(self) -> Mapping[str, Any]:
        p = self.drawn_path
        return {
            "blocks that reach the picture": f"0 to {p.reads} of {self.depth}",
            "calls of the text model": [sum(rows) for rows in p.encoder_rows],
            "rows with the prompt, of each call of the generator in a step": [
                f"{sum(rows)} of {len(rows)}" for rows in p.generator_rows
            ],
            "bridge": [part.path for part in p.bridge],
            "blocks of the generator": len(p.blocks),
            "pictures of one call": (
                f"up to {self.together}, {'several prompts' if self.batches else 'one prompt'}"
            ),
            **super().facts(),
        }

    # -- drawing ------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        assert seeds, "draw needs at least one seed"
        numbers = range(len(prompts)) if rows is None else rows.tolist()
        written = [self._written(p, row) for p, row in zip(prompts, numbers, strict=True)]
        out: list[list[Any]] = [[] for _ in prompts]
        for part in self._parts([p.text for p in written], len(seeds)):
            for group in _chunks(list(seeds), self.together):
                drawn = self._drawn([written[b] for b in part], [numbers[b] for b in part], group)
                for b, pictures in zip(part, _chunks(drawn, len(group)), strict=True):
                    out[b] += map(_pil, pictures)
        return out

    def _written(self, prompt: Prompt, row: int) -> Prompt:
        """What is drawn for a prompt. Raises TooLong."""
        written = self.rewritten(prompt, row)
        self.check_no_turns(written)
        length = len(self._ids(written.text, True))
        if length > self.context:
            raise TooLong(
                f"prompt '{written.text[:60]}' has {length} tokens, {self.name} takes "
                f"{self.context}. Shorten it."
            )
        return written

    def _parts(self, texts: Sequence[str], seeds: int) -> Iterator[list[int]]:
        """The numbers of the prompts of each call: equally long ones, `together` pictures."""
        alike: dict[int, list[int]] = {}
        for b, text in enumerate(texts):
            alike.setdefault(len(self._ids(text, True)), []).append(b)
        each = max(1, self.together // seeds)
        if each > 1 and any(len(part) > 1 for part in alike.values()) and not self.batches:
            each = 1
        for part in alike.values():
            yield from _chunks(part, each)

    def _drawn(
        self, written: Sequence[Prompt], rows: Sequence[int], seeds: Sequence[int]
    ) -> list[Any]:
        """The pictures of one call, or of one call a prompt where they cannot share one."""
        try:
            with self.following(written, rows, len(seeds)) as drawing:
                texts = [p.text for p in written]
                pictures = list(self.call(texts, seeds, steps=self.steps, pixels=True))
        except NotTogether:
            ones = zip(written, rows, strict=True)
            return [p for one, row in ones for p in self._drawn([one], [row], seeds)]
        drawing.check_finite(pictures)
        return pictures

    @contextmanager
    def following(
        self, written: Sequence[Prompt], rows: Sequence[int], seeds: int
    ) -> Iterator[DrawingCall]:
        """Inside, a call that draws these prompts is followed: its parts are asked questions."""

        def read(of_row: Sequence[int], ctx: HookContext) -> None:
            for hook in self.hooks.running:
                if hook.reads_prompts:
                    hook.read([written[b] for b in of_row], self, ctx)

        drawing = DrawingCall(
            self.hooks, self.drawn_path, self.encoder, self.generator, rows=rows, seeds=seeds,
            steps=self.steps, read=read, pad=self.tokenizer.pad_token_id, name=self.name,
        )  # fmt: skip
        with drawing.live():
            yield drawing

    @functools.cached_property
    @torch.no_grad()
    def batches(self) -> bool:
        """Whether one call can draw several prompts, measured: each picture is the one that is
        drawn alone, and a change of one prompt's rows changes its pictures and no others.
        """
        if self.together < 2:
            return False
        seeds = list(range(min(2, self.together // 2)))

        def pictures(*texts: str) -> np.ndarray:
            rows = [WORDS.index(t) for t in texts]
            with self.following([Prompt.of(t) for t in texts], rows, len(seeds)):
                return np.stack(self.call(texts, seeds, steps=1, pixels=True)).astype(np.float64)

        inside = [s for s in ("text.0.mlp", "text.0.attn") if s in self.hooks.sites]
        try:
            with load_errors(self.name, "model that draws"), self.unedited(), self.small():
                both = pictures(*WORDS)
                alone = np.concatenate([pictures(word) for word in WORDS])
                changed = []
                for site in (*inside[:1], self.path()[-1].site):
                    with self.only(_NoiseOfRow((site,))):
                        changed.append(pictures(*WORDS))
        except UserError:
            return False
        half = len(seeds)
        off = np.abs(both - alone).mean()
        return bool(off <= (_OFF if self.dtype == torch.float32 else 4 * _OFF)) and all(
            np.array_equal(c[:half], both[:half]) and not np.array_equal(c[half:], both[half:])
            for c in changed
        )

    def conditioning_columns(
        self, prompts: Sequence[Prompt], subjects: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        masks, spans = [], []
        for b, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            text = self._written(prompt, b).text
            token_C, ids, real = self._tokens_given(text)
            masks.append((token_C >= 0) & real[token_C.clamp(min=0)])
            held = torch.zeros(len(real), dtype=torch.bool)
            known = real & (ids >= 0)
            span = tokens_of_span(self.tokenizer, ids.tolist(), known.tolist(), subject)
            held[span] = True
            spans.append(masks[-1] & held[token_C.clamp(min=0)])
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(masks, batch_first=True), pad(spans, batch_first=True)

    def _tokens_given(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        """([C] the token of each column of the conditioning; [T] ids and real columns of tokens).

        By the unedited model, whose states are all different.
        """
        if text not in self._given:
            read = _Conditioning(self)
            with self.following([Prompt.of(text)], [0], 1) as drawing, self.only(read):
                with contextlib.suppress(StopForward), torch.no_grad():
                    self.call([text], [0], steps=1, pixels=False)
            assert drawing.ids is not None and drawing.mask is not None
            if len(self._given) > 1000:
                self._given.clear()
            ids = drawing.ids
            if ids.is_floating_point():
                embedding: Any = self.site("embed").first.weight
                ids = token_of(ids.float(), [embedding.float().cpu()])
            self._given[text] = read.tokens(), ids, drawing.mask.bool()
        return self._given[text]


class _NoiseOfRow(Hook):
    """Changes what leaves a site for row 1 of row patches."""

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        noise = torch.randn(y.shape, generator=rng).to(y) * y.float().std().to(y)
        own = (ctx.rows_of(site, y) == 1).view(-1, *[1] * (y.dim() - 1))
        return torch.where(own, y + noise, y)


class _Conditioning(Hook):
    """Reads what the generator is given, and the states that it may be."""

    def __init__(self, backbone: MeasuredGenerator) -> None:
        self.block = f"text.{backbone.drawn_path.reads}.block"
        self.tap = backbone.path()[0].site
        super().__init__({self.block, "final_norm", self.tap} & backbone.hooks.sites.keys())
        self.states: list[Tensor] = []
        self.given: Tensor | None = None

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        assert ctx.prompt_rows is not None
        own = [row.detach().float().cpu() for row in y[ctx.prompt_rows.to(y.device)]]
        if site != "tap":
            self.states += own[:1]
        if site == self.tap and own:
            self.given = own[0]
            if site == "tap":
                raise StopForward(None)
        return y

    def tokens(self) -> Tensor:
        assert self.given is not None
        assert self.states, "the text model was not reached"
        return once(token_of(self.given, self.states))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _pil(picture: Any) -> Pillow.Image:
    return Pillow.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def _sites_of(path: DrawingPath) -> Iterator[Site]:
    bridge: Sequence[PartOfPath] = path.bridge
    if bridge:
        yield Site("tap", bridge[0].module, None, "draw")
    for part in bridge[:-1]:
        yield Site(f"bridge.{part.path}", part.module, part.module, "draw", part.output)
    if bridge:
        yield Site("bridge", bridge[-1].module, bridge[-1].module, "draw", bridge[-1].output)
    for i, block in enumerate(path.blocks):
        name = f"draw.{i}.block"
        yield Site(name, block.module, block.module, "draw", block.output, block.image)
    if (last := path.velocity) is not None:
        yield Site("draw.velocity", last.module, last.module, "draw", 0, last.image)
