"""The questions that the parts of a drawing belong to, set inside the drawing call itself.

The text model is called for the prompt, and mostly again for a negative prompt; the image generator
once or twice a step, for rows with the prompt and rows of guidance. Each call becomes a question of
its own, in which a hook finds the prompt's length, its row of a row patch, and the time.

Shapes: R rows of a call, T columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.backbones._drawing.probe import DrawingPath, rows_in, tensors_in
from errata.backbones._overrides import forward_as, in_this_thread
from errata.core.errors import BadBackbone, NotFinite
from errata.core.hooks.context import HookContext
from errata.core.hooks.manager import HookManager


class NotTogether(BadBackbone):
    """Prompts of one call that cannot be told apart, or are padded: draw them one by one."""


class DrawingCall:
    """One drawing of some prompts with some seeds each; rows of a call go prompt by prompt.

    rows: per prompt, its row of row patches. steps: of the drawing. pad: the padding token, for
    text models that are called without a mask. read: tells the live hooks which prompts (by number)
    the rows of a new question have.
    """

    def __init__(
        self,
        hooks: HookManager,
        path: DrawingPath,
        encoder: nn.Module,
        generator: nn.Module,
        *,
        rows: Sequence[int],
        seeds: int,
        steps: int,
        read: Callable[[Sequence[int], HookContext], None],
        pad: int | None,
        name: str,
    ) -> None:
        self.pad = pad
        self.hooks, self.path, self.read, self.name = hooks, path, read, name
        self.encoder, self.generator = encoder, generator
        self.rows, self.seeds, self.steps = torch.tensor(rows), seeds, steps
        self.encoded = self.generated = 0
        #: ids and mask of the last call of the text model that held a prompt, of its first row
        self.ids: Tensor | None = None
        self.mask: Tensor | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside, calls of the two parts in this thread are questions of this drawing."""
        encode, generate = self.encoder.forward, self.generator.forward
        with ExitStack() as stack:
            stack.enter_context(self.hooks.forward())
            # no call inside is one that errata knows nothing of
            own = self.hooks.context(rows=self.rows)
            stack.enter_context(self.hooks.question(own))
            stack.enter_context(
                forward_as(self.encoder, lambda *a, **k: self._encode(encode, a, k))
            )
            stack.enter_context(
                forward_as(self.generator, lambda *a, **k: self._generate(generate, a, k))
            )
            yield

    def _encode(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        patterns = self.path.encoder_rows
        ids = next(tensors_in((args, kwargs)))
        pattern = patterns[self.encoded] if self.encoded < len(patterns) else (True,)
        self.encoded += 1
        has_prompt, of_prompt = self._prompts_of(pattern, ids.shape[0])
        mask = _mask_in(args, kwargs, ids)
        real = torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device)
        if mask is None and self.pad is not None and not ids.is_floating_point():
            mask = (ids != self.pad).long()
        real = real if mask is None else mask
        columns = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        ctx = self.hooks.context(
            lengths=(real * columns).max(1).values, mask=real, rows=self.rows[of_prompt]
        )
        ctx.shape, ctx.prompt_rows = (ids.shape[0], ids.shape[1]), has_prompt
        if len(self.rows) > 1 and len(set(real[has_prompt.to(real.device)].sum(1).tolist())) > 1:
            raise NotTogether(f"{self.name}: prompts of one call have different lengths.")
        if bool(has_prompt.any()):
            b = int(has_prompt.nonzero()[0])
            self.ids, self.mask = ids[b].detach().cpu(), real[b].detach().cpu()
        self.read(of_prompt.tolist(), ctx)
        with self.hooks.question(ctx):
            if self.hooks.deciding_ahead():
                ctx.dry_run = True
                forward(*args, **kwargs)
                ctx.dry_run, ctx.shape = False, (ids.shape[0], ids.shape[1])
            return forward(*args, **kwargs)

    def _prompts_of(self, pattern: Sequence[bool], rows: int) -> tuple[Tensor, Tensor]:
        """Of each row of a call: whether it holds the prompt, and which prompt's it is."""
        each, rest = divmod(rows, len(pattern))
        if rest or each % len(self.rows):
            if len(self.rows) > 1:
                raise NotTogether(f"{self.name} encodes prompts of one call otherwise than one.")
            each, pattern = rows, pattern[:1]
        of_prompt = torch.arange(len(self.rows)).repeat_interleave(each // len(self.rows))
        return torch.tensor(pattern).repeat_interleave(each), of_prompt.repeat(len(pattern))

    def _generate(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        patterns = self.path.generator_rows
        step, call = divmod(self.generated, len(patterns))
        self.generated += 1
        has_prompt, of_prompt = self._prompts_of(
            patterns[call], len(patterns[call]) * len(self.rows) * self.seeds
        )
        rows = rows_in((args, kwargs), len(has_prompt))
        if rows != len(has_prompt):
            raise (NotTogether if len(self.rows) > 1 else BadBackbone)(
                f"{self.name} ran its image generator on {rows} rows where its first drawing had "
                f"{len(has_prompt)}. Its drawings with this guidance cannot be followed."
            )
        ctx = self.hooks.context(rows=self.rows, image_rows=of_prompt)
        # a call whose steps are its own was measured whole
        share = step / self.steps if self.steps > 1 else call / len(patterns)
        ctx.shape, ctx.moment, ctx.prompt_rows = (rows, 0), share, has_prompt
        self._check_flat(args, kwargs)
        with self.hooks.question(ctx), self._counted(ctx):
            return forward(*args, **kwargs)

    @contextmanager
    def _counted(self, ctx: HookContext) -> Iterator[None]:
        """Inside, `image_tokens` is set when the image enters the blocks."""
        if self.path.image is None:
            yield
            return

        def count(_: nn.Module, args: Any, output: Any) -> None:
            image = next(tensors_in(output))
            ctx.image_tokens = image[..., 0].numel() // ctx.shape[0]

        handle = self.path.image.module.register_forward_hook(in_this_thread(count))
        try:
            yield
        finally:
            handle.remove()

    def _check_flat(self, args: Any, kwargs: Any) -> None:
        """A module that sees all rows in one can only be followed if they are equally long."""
        sites = {f"bridge.{p.path}" for p in self.path.bridge if p.rowless} | {"bridge", "tap"}
        if not any(p.rowless for p in self.path.bridge):
            return
        lists = [v for v in (*args, *kwargs.values()) if isinstance(v, list)]
        ragged = any(len({t.shape for t in v if isinstance(t, Tensor)}) > 1 for v in lists)
        if ragged and any(sites & h.sites for h in self.hooks.running):
            raise BadBackbone(
                f"{self.name} puts prompts of different lengths into one row, so its bridge cannot "
                "be followed with this guidance. Load it with --guidance 0."
            )

    def check_finite(self, pictures: Sequence[Any]) -> None:
        """Raises NotFinite: what became of such a picture shows nothing."""
        import numpy as np

        if any(not np.isfinite(np.asarray(p)).all() for p in pictures):
            raise NotFinite(
                f"{self.name}: a picture became infinite or not a number while it was drawn. Load "
                "with --dtype float32, or leave out the last edit."
            )


def _mask_in(args: Any, kwargs: Any, ids: Tensor) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    if mask is None and len(args) > 1:
        mask = args[1]
    fits = isinstance(mask, Tensor) and mask.shape == ids.shape[:2]
    return mask.long() if fits else None
