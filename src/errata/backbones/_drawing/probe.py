"""The way from a text model to a picture, measured on the drawing call itself.

The call runs a few times with one step, once as it is and once with each of these changed: the
words of the prompt, the output of a text block, the initial noise. What changes, and what does not,
tells the parts apart, whatever they are called:

- rows of the text model's calls that hold the prompt (they change with its words), beside those of
  a negative prompt;
- rows of the generator's calls that are conditioned on the prompt (they change with the text
  block), beside those of guidance;
- the bridge: modules whose output changes with the text block, not with the noise;
- the generator's blocks: members of module lists whose output changes with both; its head: the last
  such module outside the lists;
- the highest text block that is read: the highest one whose change arrives at the generator.

Shapes: R rows of a call of the generator with one seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from errata.backbones._overrides import StopForward, in_this_thread
from errata.core.errors import BadBackbone

#: two prompts of the same words, so that they have the same number of tokens
WORDS = "the red ring of the blue thing", "the blue ring of the red thing"
_VALUES = 512  # values per row that are compared


@dataclass(frozen=True)
class PartOfPath:
    """A module of the generator. output: which of its outputs; rowless: all rows lie in one.

    image: where the image stands in its stream, as in `Site.image`.
    """

    path: str
    module: nn.Module
    output: int = 0
    rowless: bool = False
    image: str = ""


@dataclass(frozen=True)
class DrawingPath:
    """encoder_rows: per call of the text model, which rows hold the prompt. generator_rows: the
    same per call of the generator in one step, for one seed. reads: the highest text block.
    """

    encoder_rows: tuple[tuple[bool, ...], ...]
    generator_rows: tuple[tuple[bool, ...], ...]
    reads: int
    bridge: tuple[PartOfPath, ...]
    blocks: tuple[PartOfPath, ...]
    velocity: PartOfPath | None
    #: the module whose output is the image alone, as it enters the blocks
    image: PartOfPath | None


#: module -> samples of its outputs
Outputs = Mapping[str, Sequence[Tensor]]


@dataclass
class _Record:
    """What one run showed: samples of ids, of the generator's inputs, and of module outputs."""

    ids: list[Tensor] = field(default_factory=list)
    inputs: list[list[Tensor]] = field(default_factory=list)
    outputs: list[dict[str, list[Tensor]]] = field(default_factory=list)
    shapes: dict[str, list[torch.Size]] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)


class PathProbe:
    """call(text, seed) draws with one step, without pixels. name: for messages.

    blocks: of each text block, a module whose output is added to the hidden state.
    """

    def __init__(
        self,
        encoder: nn.Module,
        blocks: Sequence[nn.Module],
        generator: nn.Module,
        call: Callable[[str, int], Any],
        name: str,
    ) -> None:
        self.encoder, self.blocks, self.generator = encoder, blocks, generator
        self.call, self.name = call, name
        self.modules = dict(generator.named_modules())
        del self.modules[""]
        #: the inputs of the generator that change with the noise
        self.latents: frozenset[int] = frozenset()

    def measure(self) -> DrawingPath:
        """Raises BadBackbone for a call that does not draw from this text model."""
        base = self._run(WORDS[0], 0)
        other = self._run(WORDS[1], 0)
        rows = [_changed_rows(a, b) for a, b in zip(base.ids, other.ids, strict=False)]
        if not any(map(any, rows)):
            raise BadBackbone(
                f"{self.name} does not give the words of a prompt to its text model, so an edit of "
                "it cannot be drawn."
            )
        twin = self._run(WORDS[0], 0, until=0)
        if _changed_inputs(base.inputs[0], twin.inputs[0]):
            raise BadBackbone(
                f"{self.name}: the same prompt gives its image generator other values each time, "
                "so what an edit changes cannot be told. Load it with --dtype float32, or on a CPU."
            )
        noisy = self._run(WORDS[0], 0, noise=(0, rows))
        seeded = self._run(WORDS[0], 1)
        self.latents = _changed_inputs(base.inputs[0], seeded.inputs[0])
        conditioned = [
            self._conditioned(a, b) for a, b in zip(base.inputs, noisy.inputs, strict=True)
        ]
        of_prompt = next((n for n, c in enumerate(conditioned) if any(c)), None)
        if of_prompt is None:
            raise BadBackbone(f"{self.name}: its text model does not reach its image generator.")
        text = _changed(base.outputs[of_prompt], noisy.outputs[of_prompt])
        image = _changed(base.outputs[of_prompt], seeded.outputs[of_prompt])
        blocks, lists = self._blocks(text, image)
        alone = [
            p for p in text
            if any(image[p]) and not any(text[p]) and len(base.shapes[p][0]) in (2, 3)
        ]  # fmt: skip
        entry = alone[-1] if alone else ""
        parts = [self._part(b, text, image, base) for b in blocks]
        velocity = self._velocity(text, image, blocks, base)
        sides = self._sides(entry, parts, len(conditioned[of_prompt]))
        reads = self._reads(rows, base, of_prompt)
        bridge = tuple(self._bridge(text, image, lists, base, len(conditioned[of_prompt])))
        if bridge:
            highest = self._run(WORDS[0], 0, noise=(reads, rows))
            self._check_tap(bridge[0].path, reads, base.outputs, highest.outputs)
        return DrawingPath(
            tuple(map(tuple, rows)),
            tuple(map(tuple, conditioned)),
            reads,
            bridge,
            tuple(replace(p, image=sides.get(p.path, "")) for p in parts),
            velocity and replace(velocity, image=sides.get("", "")),
            PartOfPath(entry, self.modules[entry]) if entry else None,
        )

    # -- runs ---------------------------------------------------------------------------------

    def _run(
        self,
        text: str,
        seed: int,
        *,
        noise: tuple[int, Sequence[Sequence[bool]]] | None = None,
        until: int | None = None,
    ) -> _Record:
        """noise: (text block, rows per call of the text model that are changed). until: stop at
        this call of the generator.
        """
        record = _Record()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(_watched(self.encoder, before=lambda a: record.ids.append(_ids(a))))
            if noise is not None:
                block, rows = noise

                def change(output: Any) -> Any:
                    call = len(record.ids) - 1
                    return _noisy(output, rows[call] if call < len(rows) else ())

                stack.enter_context(_watched(self.blocks[block], after=change))

            def enters(given: Any) -> None:
                record.inputs.append([_sample(t) for t in _rows_of(given)])
                record.outputs.append({})
                if until is not None and len(record.inputs) > until:
                    raise StopForward(None)

            stack.enter_context(_watched(self.generator, before=enters))
            if until is None:
                for path, module in self.modules.items():
                    stack.enter_context(_watched(module, after=_recorder(record, path)))
            try:
                self.call(text, seed)
            except StopForward:
                pass
        if not record.ids or not record.inputs:
            what = "text model" if not record.ids else "image generator"
            raise BadBackbone(f"{self.name} never ran its {what} while it drew.")
        return record

    def _conditioned(self, base: Sequence[Tensor], other: Sequence[Tensor]) -> list[bool]:
        """The rows of a call whose conditioning changed; the latents are no conditioning."""
        rows = base[0].shape[0]
        out = [False] * rows
        for i in _changed_inputs(base, other) - self.latents:
            a, b = base[i], other[i]
            if a.shape == b.shape and a.shape[0] == rows:
                out = [was or not x.equal(y) for was, x, y in zip(out, a, b, strict=True)]
            else:
                out = [True] * rows
        return out

    def _reads(self, rows: Sequence[Sequence[bool]], base: _Record, call: int) -> int:
        """The highest block whose change arrives; blocks below one that arrives do too."""
        low, high = 0, len(self.blocks) - 1
        while low < high:
            middle = (low + high + 1) // 2
            run = self._run(WORDS[0], 0, noise=(middle, rows), until=call)
            arrives = any(self._conditioned(base.inputs[call], run.inputs[call]))
            low, high = (middle, high) if arrives else (low, middle - 1)
        return low

    def _check_tap(
        self, tap: str, reads: int, base: Sequence[Outputs], changed: Sequence[Outputs]
    ) -> None:
        """Raises BadBackbone if what the highest block gives goes past the tap."""
        pairs = zip(base, changed, strict=True)
        if not any(any(_changed(a, b).get(tap, ())) for a, b in pairs):
            raise BadBackbone(
                f"{self.name} hands several blocks of its text model to its image generator, each "
                f"on a way of its own ({tap} does not see block {reads}). errata follows one way. "
                "Choose another pipeline, such as Sana, Lumina 2 or Qwen-Image."
            )

    # -- what the runs tell -------------------------------------------------------------------

    def _blocks(
        self, text: Mapping[str, Sequence[bool]], image: Mapping[str, Sequence[bool]]
    ) -> tuple[list[str], list[str]]:
        """(blocks in the order in which they ran, the paths of the lists that hold them)."""
        blocks: list[str] = []
        for path in text:  # modules end after their parts
            owner = self.modules.get(path.rpartition(".")[0])
            if isinstance(owner, nn.ModuleList) and any(text[path]) and any(image[path]):
                blocks.append(path)
        outer = [b for b in blocks if not any(b.startswith(f"{o}.") for o in blocks)]
        return outer, list({b.rpartition(".")[0] for b in outer})

    def _bridge(
        self,
        text: Mapping[str, Sequence[bool]],
        image: Mapping[str, Sequence[bool]],
        lists: Sequence[str],
        base: _Record,
        rows: int,
    ) -> Iterator[PartOfPath]:
        """The largest modules outside the blocks through which the text goes alone."""
        chosen: list[str] = []

        def look(prefix: str, module: nn.Module) -> None:
            for name, child in module.named_children():
                path = f"{prefix}{name}"
                if path in lists:
                    continue
                shapes = base.shapes.get(path, [])
                tokens = bool(shapes) and all(
                    len(s) > 2 or (len(s) == 2 and s[0] > rows) for s in shapes
                )
                changed = text.get(path, ())
                if tokens and changed and all(changed) and not any(image[path]):
                    chosen.append(path)
                else:
                    look(f"{path}.", child)

        look("", self.generator)
        order = {path: i for i, path in enumerate(text)}
        chosen.sort(key=order.__getitem__)
        columns = [base.shapes[path][0][-2] for path in chosen]
        for path in (p for p, n in zip(chosen, columns, strict=True) if n == columns[0]):
            flat = len(base.shapes[path][0]) == 2
            yield PartOfPath(path, self.modules[path], rowless=flat)

    def _part(
        self,
        path: str,
        text: Mapping[str, Sequence[bool]],
        image: Mapping[str, Sequence[bool]],
        base: _Record,
    ) -> PartOfPath:
        """A block with the output that holds the image: of two streams, the one as long as the
        last module before it that saw the image alone.
        """
        shapes = base.shapes[path]
        alone = [
            base.shapes[p][0][1] for p in text
            if any(image[p]) and not any(text[p]) and len(base.shapes[p][0]) == 3
        ]  # fmt: skip
        fitting = [i for i, s in enumerate(shapes) if len(s) == 3 and s[1] in alone]
        output = 0 if len(shapes) == 1 else (fitting or [len(shapes) - 1])[-1]
        return PartOfPath(path, self.modules[path], base.places[path][output])

    def _sides(self, entry: str, blocks: Sequence[PartOfPath], rows: int) -> dict[str, str]:
        """Where the image stands in the joint streams of blocks; "" for what follows them.

        A stream that is joined holds the image as the last module before it gave it.
        """
        if not entry:
            return {}
        sides: dict[str, str] = {}
        latest: list[Tensor] = []

        def came(output: Any) -> None:
            first = next(tensors_in(output))
            latest[:] = [first.reshape(rows, -1, first.shape[-1])]

        def enters(part: PartOfPath, given: Any) -> None:
            whole = next((t for t in tensors_in(given) if t.dim() == 3), None)
            if whole is None or not latest:
                return
            (image,) = latest
            n = image.shape[1]
            if whole.shape[1] <= n or whole.shape[::2] != image.shape[::2]:
                return
            for side, cut in (("first", whole[:, :n]), ("last", whole[:, -n:])):
                if cut.equal(image):
                    sides[""] = side
            sides[part.path] = sides.get("", "last")

        def leaves(part: PartOfPath, output: Any) -> None:
            out = output[part.output] if isinstance(output, tuple) else output
            if latest and out.shape == latest[0].shape:
                latest[:] = [out]

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(_watched(self.modules[entry], after=came))
            for part in blocks:
                stack.enter_context(
                    _watched(
                        part.module,
                        before=functools.partial(enters, part),
                        after=functools.partial(leaves, part),
                    )
                )
            self.call(WORDS[0], 0)
        return sides

    def _velocity(
        self,
        text: Mapping[str, Sequence[bool]],
        image: Mapping[str, Sequence[bool]],
        blocks: Sequence[str],
        base: _Record,
    ) -> PartOfPath | None:
        inside = tuple(f"{b}." for b in blocks)
        last = None
        for path in text:
            if path in blocks or path.startswith(inside):
                continue
            if any(text[path]) and any(image[path]) and len(base.shapes[path][0]) >= 3:
                last = path
        while last and (up := last.rpartition(".")[0]) in text:
            last = up
        return PartOfPath(last, self.modules[last]) if last else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a module's inputs or outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)


def _rows_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a call, by rows of the first axis; a list of tensors is one of rows."""
    if isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
        yield torch.stack([_sample(v[None])[0] for v in value])
    elif isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _rows_of(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _rows_of(v)


def rows_in(given: Any, patterns: int) -> int:
    """The number of rows of a call of the generator: that of its first tensor or list."""
    first = next(_rows_of(given))
    return int(first.shape[0]) if first.dim() > 1 else patterns


def _ids(given: Any) -> Tensor:
    return next(tensors_in(given)).detach().cpu()


def _sample(t: Tensor) -> Tensor:
    """[R, n] some values of each row, as float64."""
    if t.dim() == 0:
        t = t[None]
    flat = t.detach()
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).reshape(t.shape[0], -1)
    step = max(1, flat.shape[1] // _VALUES)
    # an odd step does not fall into the period of the width
    part = flat[:, :: step + (step + 1) % 2][:, :_VALUES].double().cpu()
    return torch.nn.functional.pad(part, (0, _VALUES - part.shape[1]))


def _recorder(record: _Record, path: str) -> Callable[[Any], None]:
    def keep(output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        found = [
            (i, t) for i, t in enumerate(parts)
            if isinstance(t, Tensor) and t.dim() > 1 and t.is_floating_point()
        ]  # fmt: skip
        tensors = [t for _, t in found]
        if not tensors:
            return
        seen = record.outputs[-1]
        seen.pop(path, None)  # the last call counts, also for the order
        seen[path] = [_sample(t) for t in tensors]
        record.shapes[path] = [t.shape for t in tensors]
        record.places[path] = [i for i, _ in found]

    return keep


def _changed_rows(a: Tensor, b: Tensor) -> list[bool]:
    if a.shape != b.shape:
        return [True] * a.shape[0]
    return [not x.equal(y) for x, y in zip(a, b, strict=True)]


def _changed_inputs(base: Sequence[Tensor], other: Sequence[Tensor]) -> frozenset[int]:
    """The numbers of the inputs that changed."""
    pairs = enumerate(zip(base, other, strict=True))
    return frozenset(i for i, (a, b) in pairs if a.shape != b.shape or not a.equal(b))


def _changed(
    base: Mapping[str, Sequence[Tensor]], other: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[bool]]:
    """Module -> per output, whether it changed; in the order in which the modules ended."""
    return {
        path: [not a.equal(b) for a, b in zip(tensors, other.get(path, ()), strict=False)]
        for path, tensors in base.items()
    }


def _noisy(output: Any, rows: Sequence[bool]) -> Any:
    y = output[0] if isinstance(output, tuple) else output
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(y.shape, generator=rng).to(y) * y.float().std().to(y)
    where = torch.tensor([*rows, *[False] * y.shape[0]][: y.shape[0]], device=y.device)
    new = torch.where(where.view(-1, *[1] * (y.dim() - 1)), y + noise, y)
    return (new, *output[1:]) if isinstance(output, tuple) else new


@contextmanager
def _watched(
    module: nn.Module,
    *,
    before: Callable[[Any], None] | None = None,
    after: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    handles = []
    if before is not None:
        enter = in_this_thread(lambda _, args, kwargs: before((args, kwargs)))
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
    if after is not None:
        leave = in_this_thread(lambda _, args, output: after(output))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
