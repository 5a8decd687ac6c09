"""The loss of a pipeline's own image generator, for a prompt against another prompt.

The other prompt is drawn by the pipeline's own call. At some steps of that drawing the generator's
inputs that move from step to step (latents, times) and its output are kept. The loss of a prompt is
the mean squared difference between this output and the one that the generator gives with the
prompt in its place: at one point and time two predicted velocities, or noises, differ as the
predicted pictures do, but for a factor of the time. So nothing here knows how a scheduler counts
time, which sign a velocity has, or how a pipeline hands over a prompt.

The prompt's way to the generator is the pipeline's own call too, without its `torch.no_grad`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.backbones._drawing.columns import tokens_of_span
from errata.backbones._drawing.probe import tensors_in
from errata.backbones._overrides import StopForward, in_this_thread
from errata.core.errors import BadBackbone
from errata.core.hooks.hook import Hook
from errata.core.model.generation import GeneratorLoss
from errata.core.types import Prompt

if TYPE_CHECKING:
    from errata.backbones._drawing.generator import MeasuredGenerator

#: the latest time that is kept: the picture is nearly decided after it
LATEST = 0.6
#: kept steps of a drawing
STEPS = 3
#: the place of a value in the arguments of a call
Place = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class _Point:
    """given: what the generator got. output: of the rows with the prompt."""

    given: Mapping[Place, Any]
    output: Tensor


class PipelineLoss(GeneratorLoss):
    """Raises BadBackbone for a call whose generator no gradient of the text model reaches."""

    def __init__(
        self,
        backbone: MeasuredGenerator,
        call: Callable[[str, int], Any],
        prompt: Prompt,
        goal: Prompt,
        row: int,
        seeds: Sequence[int],
    ) -> None:
        """call(text, seed): the pipeline's call with gradients. row: of row patches."""
        self.backbone, self.call, self.row = backbone, call, row
        self.prompt = backbone.rewritten(prompt, row)
        goal = backbone.rewritten(goal, row)
        patterns = backbone.drawn_path.generator_rows
        #: the call of a step that has the prompt, and which of its rows
        self.of_step = next(n for n, rows in enumerate(patterns) if any(rows))
        self.own = torch.tensor(patterns[self.of_step])
        kept = [point for seed in seeds for point in self._points(goal, seed)]
        first = kept[0].given
        moving = {
            place for place in first
            if any(not _same(first[place], p.given.get(place)) for p in kept[1:])
        }  # fmt: skip
        self.kept = [
            _Point({k: v for k, v in p.given.items() if k in moving}, p.output) for p in kept
        ]

    @property
    def points(self) -> int:
        return len(self.kept)

    def column(self, subject: str) -> int:
        ids, mask = self._tokens()
        kept = mask.bool().tolist()
        return tokens_of_span(self.backbone.tokenizer, ids.tolist(), kept, subject)[-1]

    def distances(self, points: Sequence[int], *hooks: Hook) -> Tensor:
        backbone = self.backbone
        given: list[Any] = []

        def enters(args: Any, kwargs: Any) -> None:
            given[:] = [(args, kwargs)]
            raise StopForward(None)

        out = []
        with backbone.applied(*hooks), self._drawing(self.prompt) as drawing:
            with self._watched(enters), contextlib.suppress(StopForward):
                self.call(self.prompt.text, 0)
            args, kwargs = given[0]
            reached = any(t.requires_grad for t in tensors_in((args, kwargs)))
            if torch.is_grad_enabled() and hooks and not reached:
                raise BadBackbone(
                    f"{backbone.name} hands its text states over without gradients, so an editor "
                    "cannot search through its image generator. Choose another editor: memit."
                )
            for n in points:
                drawing.generated = self.of_step
                moved = _replaced((args, kwargs), self.kept[n].given)
                prediction = self._own_rows(backbone.generator(*moved[0], **moved[1]))
                goal = self.kept[n].output.to(prediction.device)
                out.append((prediction.float() - goal).square().mean())
        return torch.stack(out)

    # -- inside -------------------------------------------------------------------------------

    def _points(self, goal: Prompt, seed: int) -> list[_Point]:
        """Some steps of the drawing of a prompt, none later than `LATEST`."""
        backbone = self.backbone
        last = int(LATEST * (backbone.steps - 1))
        count = min(STEPS, last + 1)
        steps = {round(i * last / max(1, count - 1)) for i in range(count)}
        found: list[_Point] = []
        given: list[Any] = []
        calls = -1

        def enters(args: Any, kwargs: Any) -> None:
            nonlocal calls
            calls += 1
            step, call = divmod(calls, len(backbone.drawn_path.generator_rows))
            if step > last:
                raise StopForward(None)
            given[:] = [(args, kwargs)] if call == self.of_step and step in steps else []

        def leaves(output: Any) -> None:
            if given:
                kept = self._own_rows(output).detach().float()
                found.append(_Point(_values(given[0]), kept))

        with torch.no_grad(), self._drawing(goal), self._watched(enters, leaves, every=True):
            with contextlib.suppress(StopForward):
                self.call(goal.text, seed)
        if not found:
            raise BadBackbone(f"{backbone.name} never ran its image generator while it drew.")
        return found

    def _tokens(self) -> tuple[Tensor, Tensor]:
        def enters(args: Any, kwargs: Any) -> None:
            raise StopForward(None)

        with torch.no_grad(), self.backbone.unedited(), self._drawing(self.prompt) as drawing:
            with self._watched(enters), contextlib.suppress(StopForward):
                self.call(self.prompt.text, 0)
        assert drawing.ids is not None and drawing.mask is not None
        return drawing.ids, drawing.mask

    def _drawing(self, prompt: Prompt) -> Any:
        return self.backbone.following([prompt], [self.row], 1)

    @contextmanager
    def _watched(
        self,
        enters: Callable[[Any, Any], None],
        leaves: Callable[[Any], None] | None = None,
        *,
        every: bool = False,
    ) -> Iterator[None]:
        """Inside, calls of the generator are watched; without `every` the one with the prompt."""
        number, generator = -1, self.backbone.generator

        def before(_: Any, args: Any, kwargs: Any) -> None:
            nonlocal number
            number += 1
            if every or number == self.of_step:
                enters(args, kwargs)

        handles = [generator.register_forward_pre_hook(in_this_thread(before), with_kwargs=True)]
        if leaves is not None:
            after = in_this_thread(lambda _, args, output: leaves(output))
            handles.append(generator.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _own_rows(self, output: Any) -> Tensor:
        """[rows with the prompt, ...] of an output, which may be a list of one tensor a row."""
        first = output[0] if isinstance(output, (tuple, list)) else next(tensors_in(output))
        whole: Tensor = torch.stack(list(first)) if isinstance(first, (tuple, list)) else first
        return whole[self.own.to(whole.device)]


def _values(value: Any, place: Place = ()) -> dict[Place, Any]:
    """The tensors and numbers of arguments, by their place."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    else:
        return {place: value.detach().clone() if isinstance(value, Tensor) else value}
    return {k: v for name, one in items for k, v in _values(one, (*place, name)).items()}


def _replaced(value: Any, new: Mapping[Place, Any], place: Place = ()) -> Any:
    """The same arguments with the values of `new` in their places."""
    if isinstance(value, Mapping):
        return {name: _replaced(one, new, (*place, name)) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(one, new, (*place, n)) for n, one in enumerate(value))
    return new.get(place, value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.equal(b)
    return type(a) is type(b) and bool(a is b or a == b)
