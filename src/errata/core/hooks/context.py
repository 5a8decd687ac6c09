"""`Site`: where a hook acts. `HookContext`: what it knows about the current question.

Shapes: B rows of a batch, T columns of the current forward, K columns of the whole question so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from errata.core.errors import BadPatch, MissingMask
from errata.core.hooks.dedup import DedupBatch


@dataclass(frozen=True, slots=True)
class Site:
    """A named place of a model: the input of `first` and the output of `last`.

    Mostly both are one module. With `last` None the site is the hidden state that enters `first`
    (`text.{i}.in`): x and y are the same. `stream` is `text` for modules that see [B, T, .],
    `vision` for those that see images, `draw` for those that draw them. `output`: which of the
    outputs of `last`, if it gives several. `image`: where the image tokens stand in a stream that
    also holds those of the text, `first` or `last`; a hook sees them alone.
    """

    name: str
    first: nn.Module
    last: nn.Module | None
    stream: str = "text"
    output: int = 0
    image: str = ""


@dataclass(eq=False)
class HookContext:
    """What is fixed while one question is answered: a scoring forward, a `generate`, a drawing.

    sites:   all sites of the model. run: runs a site's frozen module, hooks bypassed.
    lengths: [B] prompt length of each row, image tokens included; None when unknown.
    mask:    [B, K] 1 for real columns. vision: [B, K] True for image tokens of the prompt.
    rows:    [B] which row of a row patch each batch row uses; None = row b uses row b.
    image_rows: [N] the batch row of each image, in the order in which the vision tower sees them,
    or in which they are drawn.
    image_sizes: [N] relative number of vision positions per image, for towers that flatten images.
    memo:    decisions, made once at prefill and read afterwards; keyed (id of hook, site).
    moment:  time of the running diffusion step, 0 = noise, 1 = picture; None in text.
    prompt_rows: [R] while drawing, True for rows that have the prompt, False for those of guidance;
    None where all rows have it, or those that have it come first. image_tokens: while drawing, how
    many tokens a picture has.
    dry_run: True in a dry run: hooks whose gate site lies above their edit site record their
    decision; nothing is changed.
    dedup:   set while identical columns of the batch are computed once.
    offset:  columns of the prompt that an earlier forward has put into the KV cache, when other
    code than errata calls the model with its prompt in pieces.
    scratch: tensors that a hook keeps from one site for the next; keyed (id of hook, name).
    needed:  site -> [B, n], the columns of its output that are used, where not all are.
    kept:    what a hook keeps from one forward of the same `PrefixState` for the next; keyed (id of
    hook, site). None where no state is run.
    """

    sites: Mapping[str, Site]
    run: Callable[[str, Tensor], Tensor]
    lengths: Tensor | None = None
    mask: Tensor | None = None
    vision: Tensor | None = None
    rows: Tensor | None = None
    image_rows: Tensor | None = None
    image_sizes: Tensor | None = None
    shape: tuple[int, int] = (0, 0)
    prefilled: bool = False
    dry_run: bool = False
    moment: float | None = None
    prompt_rows: Tensor | None = None
    image_tokens: int = 0
    dedup: DedupBatch | None = None
    offset: int = 0
    memo: dict[tuple[int, str], Any] = field(default_factory=dict)
    scratch: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    needed: Mapping[str, Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, str], Any] | None = None

    def last_prompt(self, x: Tensor, hook: object) -> Tensor:
        """[B, T, d] -> [B, d], the state at each row's last prompt token.

        Position -1 is never read. Raises MissingMask when prompt lengths are unknown.
        """
        if self.lengths is None:
            raise MissingMask(
                f"{type(hook).__name__} decides from the prompt, but the model was called without "
                "an attention_mask. Pass attention_mask, or ask through backbone.ask / "
                "backbone.generate."
            )
        index = (self.lengths - 1 - self.offset).to(x.device)
        if self.offset and not bool(((index >= 0) & (index < x.shape[1])).all()):
            raise BadPatch(
                f"{type(hook).__name__} decides from the last token of the prompt, but this call "
                "of the model holds another piece of it. Pass the whole prompt to "
                "model.generate, or ask through errata.ask."
            )
        return x[torch.arange(x.shape[0], device=x.device), index]

    def decide(self, hook: object, site: str, make: Callable[[], Any]) -> Any:
        """The decision of `hook` at `site`: made in the first forward, read in later ones."""
        key = (id(hook), site)
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    @contextmanager
    def only(self, sites: Iterable[str], columns: Tensor) -> Iterator[None]:
        """Inside, nothing but `columns` [B, n] of these sites' outputs is used."""
        before, self.needed = self.needed, {**self.needed, **dict.fromkeys(sites, columns)}
        try:
            yield
        finally:
            self.needed = before

    def call(self, site: str, x: Tensor) -> Tensor:
        """Runs the site's frozen module on x, hooks bypassed."""
        return self.run(site, x)

    def select(self, index: Tensor) -> HookContext:
        """The same question for some of its rows.

        A decision is a tensor, or a tuple or dict of tensors, with B leading rows.
        """

        def pick(value: Any) -> Any:
            return map_decision(value, lambda v: v[index.to(v.device)])

        rows = self.rows if self.rows is not None else torch.arange(self.shape[0])
        return replace(
            self,
            lengths=pick(self.lengths),
            mask=pick(self.mask),
            vision=pick(self.vision),
            rows=pick(rows),
            memo={k: pick(v) for k, v in self.memo.items()},
            needed={},
        )

    def rows_of(self, site: str, x: Tensor) -> Tensor:
        """[B'] the patch row of each leading entry of x at `site`."""
        if self.sites[site].stream == "text":
            rows = self.rows
            if rows is None:
                rows = torch.arange(x.shape[0])
            return rows.to(x.device)
        assert self.image_rows is not None, "a row patch at a vision site needs `image_rows`"
        of_image = self.image_rows if self.rows is None else self.rows[self.image_rows]
        if of_image.shape[0] != x.shape[0]:
            assert self.image_sizes is not None
            each, rest = divmod(x.shape[0], int(self.image_sizes.sum()))
            if rest or not each:
                raise BadPatch(
                    f"at {site} this model mixes the pictures of a batch, so that they cannot have "
                    "a patch each. Ask about one picture at a time."
                )
            of_image = of_image.repeat_interleave(self.image_sizes * each)
        return of_image.to(x.device)


def map_decision(value: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """`run` on every tensor of a decision: a tensor, or tuples and dicts of them."""
    if isinstance(value, Tensor):
        return run(value)
    if isinstance(value, tuple):
        return tuple(map_decision(v, run) for v in value)
    if isinstance(value, dict):
        return {k: map_decision(v, run) for k, v in value.items()}
    return value
