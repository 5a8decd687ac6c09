"""Attribution: which modules support the answer, and which image tokens it depends on.

Source: the motivation of VisEdit (Chen et al., AAAI 2025) and its code at 26419f2.

Modules: the output of every attention and FFN at the last prompt token goes through the final norm
and the head; v is the logit and p the probability of the token that the model will answer with. Per
question v is divided by the largest |v|, and the score is sign(v) |v|^(1/2) p^(1/2).

Image tokens: noise (sigma 0.7, 10 draws) on a window of (2 r + 1)^2 of them at the input of an
attention module; influence is 1 - cosine of its clean and noisy output at the last prompt token.

The questions are a benchmark's, or one of the user's: `image` and `prompt`. The maps are drawn over
the middle of the picture in the shape of the grid, which is the part that a processor which scales
and crops keeps; image tokens without a place in the picture (a Q-Former's queries) have no map.

Shapes: P prompts, L blocks, N image tokens, V vocabulary, d width of the hidden states.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.algorithms.attribution import noise_influence
from errata.analyses._summary import Summary, cells, spaced
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Figure, Findings, Heat, Panel, Table, Value
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import Recorder
from errata.core.types import Image, Prompt
from errata.io.images import load_image
from errata.training.optimise import generator

MODULES = ("attn", "mlp")
WORDS = {"attn": "attention", "mlp": "feed-forward"}
CHUNK = 32
PIXELS = 336
"""Longest side of a picture in a figure."""


@dataclass(frozen=True)
class InfluenceMap:
    """Of one question; influence: [len(layers), rows, columns]."""

    name: str
    prompt: Prompt
    layers: tuple[int, ...]
    influence: Tensor


class AttributionAnalysis(Analysis):
    """Modules that support the answer, and image tokens that it depends on."""

    name = "attribution"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """image, prompt: one picture (a path) and one question, instead of a benchmark's.

        maps: number of questions with maps of the image tokens. layers: blocks of these maps,
        negative from the end; () = all. drawn: number of these blocks with a map each, evenly
        spaced; the mean is over all. radius, sigma, draws: of the noise. grid: rows and columns of
        the image tokens, where they are no square.
        """

        image: str = ""
        prompt: str = ""
        maps: int = 4
        layers: tuple[int, ...] = ()
        drawn: int = 3
        radius: int = 1
        sigma: float = 0.7
        draws: int = 10
        grid: tuple[int, int] | None = None

    @property
    def default(self) -> str:
        return "" if self.config.image else self.benchmark

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec for an image without a prompt or tokens without a grid; BadImage."""
        questions, bb, c = self._questions(subject), subject.backbone, self.config
        names, prompts = [name for name, _ in questions], [prompt for _, prompt in questions]
        layers = tuple(sorted({bb.layer(i) for i in c.layers}) or range(bb.depth))
        scores = module_attribution(bb, prompts)
        maps = []
        for name, prompt in questions[: c.maps]:
            influence = visual_attribution(
                bb, prompt, layers, radius=c.radius, sigma=c.sigma, draws=c.draws, grid=c.grid,
                seed=subject.seed,
            )  # fmt: skip
            maps.append(InfluenceMap(name, prompt, layers, influence))
            subject.progress("mapping pictures", len(maps), min(c.maps, len(questions)))
        means = _means(names, scores)
        where = f"{bb.name}, {subject.benchmark or 'one question'}"
        figures = [_modules(means, bb.depth, f"{where}: n = {len(questions)}. ")]
        tables = [_module_table(means, bb.depth, len(questions))]
        if maps:
            how = f"noise of sigma {c.sigma:g} on {2 * c.radius + 1} x {2 * c.radius + 1} tokens"
            figures.append(_pictures(maps, c.drawn, f"{where}. ", f"{how}, {c.draws} draws"))
            tables.append(_map_table(maps))
        best = {m: max(range(bb.depth), key=lambda i: means[m, i].value) for m in MODULES}
        lines = [f"{WORDS[m]} speaks most for the answer in block {i} ({means[m, i].value:.2f})"
                 for m, i in best.items()]  # fmt: skip
        facts = {"questions": len(questions), "mapped": [m.name for m in maps],
                 "blocks": list(layers)}  # fmt: skip
        short = () if c.image else first_look(len(questions), "question")
        return Findings(tuple(figures), tuple(tables), facts, (*lines, *short))

    def _questions(self, subject: Subject) -> list[tuple[str, Prompt]]:
        c = self.config
        if bool(c.image) != bool(c.prompt):
            raise BadSpec("image=FILE and prompt=TEXT go together: what is asked about what.")
        if not c.image:
            cases = [x for x in subject.cases if len(x.edit.prompt.images) == 1]
            if not cases:
                raise BadSpec(
                    "attribution needs questions about one image each. Name a --benchmark with "
                    "some, or give --with image=FILE and --with prompt=TEXT."
                )
            return [(x.id, x.edit.prompt) for x in cases]
        if subject.cases:
            raise BadSpec("a --benchmark and --with image=FILE are two subjects. Give one of them.")
        load_image(Image(c.image))
        return [("question", Prompt.of(c.prompt, c.image))]


@torch.no_grad()
def module_attribution(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    """[P, L, 2] scores of each block's attention and FFN (`MODULES`), one question per row."""
    sites = [f"text.{i}.{m}" for i in range(backbone.depth) for m in MODULES]
    out = []
    for start in range(0, len(prompts), CHUNK):
        batch = backbone.encode(prompts[start : start + CHUNK])
        recorder = Recorder(sites)
        with backbone.applied(recorder):
            answer_B = backbone.logits(batch)[:, 0].argmax(-1)
        rows = torch.arange(batch.size, device=batch.ids.device)
        states = [recorder.y[s][rows, batch.lengths - 1] for s in sites]
        logits = [_logits(backbone, x).gather(1, answer_B[:, None])[:, 0] for x in states]
        value_BS = torch.stack(logits, dim=1)
        probability_BS = torch.stack(
            [_logits(backbone, x).softmax(-1)[rows, answer_B] for x in states], dim=1
        )
        scores = module_scores(value_BS, probability_BS)
        out.append(scores.reshape(batch.size, backbone.depth, len(MODULES)).cpu())
    return torch.cat(out)


def module_scores(value_PS: Tensor, probability_PS: Tensor) -> Tensor:
    """sign(v) |v|^(1/2) p^(1/2) with v relative to the largest |v| of its row."""
    largest = value_PS.abs().amax(1, keepdim=True).clamp(min=1e-12)
    relative = value_PS / largest
    return relative.sign() * (relative.abs() * probability_PS).sqrt()


def _logits(backbone: Backbone, x_Bd: Tensor) -> Tensor:
    """[B, V] logits of hidden states, through the final norm and the head."""
    normed = backbone.hooks.call("final_norm", x_Bd)
    return backbone.hooks.call("head", normed).float()


def windows(grid: tuple[int, int], radius: int) -> list[Tensor]:
    """For each cell of a grid, row by row, the cells of the square around it, cut at the edge."""
    height, width = grid
    cells = torch.arange(height * width).reshape(height, width)
    out = []
    for i in range(height):
        for j in range(width):
            part = cells[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            out.append(part.flatten())
    return out


def grid_of(count: int) -> tuple[int, int]:
    """The sides of a square grid of `count` image tokens. Raises BadSpec where it is none."""
    side = math.isqrt(count)
    if side * side != count:
        raise BadSpec(
            f"the picture has {count} tokens, which is no square. Give their grid, such as "
            "--with grid=[12,16], or draw no maps (--with maps=0)."
        )
    return side, side


def visual_attribution(
    backbone: Backbone,
    prompt: Prompt,
    layers: Sequence[int],
    *,
    radius: int = 1,
    sigma: float = 0.7,
    draws: int = 10,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Tensor:
    """[len(layers), rows, columns] influence of the window around each token of the one image.

    Raises BadSpec for a prompt without exactly one image, or a grid that does not fit it.
    """
    if len(prompt.images) != 1:
        raise BadSpec(f"attribution needs one image; the prompt has {len(prompt.images)}.")
    question = backbone.encode([prompt])
    columns = question.vision[0].nonzero()[:, 0].cpu()
    grid = grid or grid_of(len(columns))
    if grid[0] * grid[1] != len(columns):
        raise BadSpec(f"a grid of {grid[0]} x {grid[1]} does not fit {len(columns)} image tokens.")
    places = [columns[cells] for cells in windows(grid, radius)]
    blocks = [backbone.layer(i) for i in layers]
    out = torch.zeros(len(blocks), len(places))
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        rng = generator(seed, "attribution", start)
        by_block = noise_influence(
            backbone, question, some, layers=blocks, sigma=sigma, draws=draws, rng=rng
        )
        out[:, start : start + CHUNK] = torch.stack([by_block[i] for i in blocks])
    return out.reshape(len(blocks), *grid)


# -- figures and tables ----------------------------------------------------------------------------


def _means(names: Sequence[str], scores: Tensor) -> dict[tuple[str, int], Value]:
    """(module, block) -> mean score with its interval over questions."""
    summary = Summary(names)
    return {
        (module, i): summary.at(dict(zip(names, scores[:, :, k].tolist(), strict=True)), i)
        for k, module in enumerate(MODULES)
        for i in range(scores.shape[1])
    }


def _modules(means: Mapping[tuple[str, int], Value], depth: int, where: str) -> Figure:
    panel = Heat(
        "mean score of each module",
        tuple(WORDS[m] for m in MODULES),
        tuple(map(str, range(depth))),
        tuple(tuple(means[m, i].value for i in range(depth)) for m in MODULES),
        middle=0.0,
        axis="block",
    )
    return Figure(
        "attribution", "What speaks for the answer", (panel,), 1,
        f"{where}Each module's output at the last prompt token, read by the final norm and the "
        "head: the root of the said token's logit (as a share of the largest of its question) "
        "times its probability, with the logit's sign.",
    )  # fmt: skip


def _pictures(maps: Sequence[InfluenceMap], drawn: int, where: str, how: str) -> Figure:
    panels: list[Panel] = []
    layers = maps[0].layers
    shown = [layers[i] for i in spaced(len(layers), drawn)]
    for m in maps:
        rows, columns = m.influence.shape[1:]
        png = picture(m.prompt.images[0], (rows, columns))

        def heat(title: str, values: Tensor, png: bytes = png, notes: Sequence[str] = ()) -> Heat:
            grid = tuple(map(tuple, values.tolist()))
            blank = ("",) * len(grid), ("",) * len(grid[0])
            return Heat(title, *blank, grid, image=png, notes=tuple(notes))

        question = textwrap.wrap(m.prompt.text, 28, max_lines=3, placeholder=" …")
        panels.append(heat("asked", torch.full((rows, columns), math.nan), notes=question))
        panels.append(heat(f"mean of {len(m.layers)} blocks", m.influence.mean(0)))
        panels += [heat(f"block {i}", m.influence[m.layers.index(i)]) for i in shown]
    return Figure(
        "attribution-images", "Where the answer is read from", tuple(panels), 2 + len(shown),
        f"{where}1 - cosine of an attention's clean and noised output at the last prompt token, "
        f"{how}; each map has its own scale.",
    )  # fmt: skip


def picture(image: Image, grid: tuple[int, int]) -> bytes:
    """PNG of the middle of an image, in the shape of the grid. Raises BadImage."""
    whole = load_image(image)
    rows, columns = grid
    unit = min(whole.width / columns, whole.height / rows)
    width, height = unit * columns, unit * rows
    left, top = (whole.width - width) / 2, (whole.height - height) / 2
    part = whole.crop((round(left), round(top), round(left + width), round(top + height)))
    part.thumbnail((PIXELS, PIXELS))
    out = io.BytesIO()
    part.save(out, "PNG")
    return out.getvalue()


def _module_table(means: Mapping[tuple[str, int], Value], depth: int, n: int) -> Table:
    rows = [(m, i, *cells(means[m, i]), n) for m in MODULES for i in range(depth)]
    return Table("attribution", ("module", "block", "score", "low", "high", "n"), rows)


def _map_table(maps: Sequence[InfluenceMap]) -> Table:
    rows = [
        (m.name, layer, r, c, round(v, 6))
        for m in maps
        for layer, cells in zip(m.layers, m.influence.tolist(), strict=True)
        for r, row in enumerate(cells)
        for c, v in enumerate(row)
    ]
    return Table("attribution-images", ("question", "block", "row", "column", "influence"), rows)
