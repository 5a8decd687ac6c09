"""Whether what a down projection writes arrives in the hidden states as it is.

MEMIT and AlphaEdit take the wanted change of a block's output for the wanted change of its down
projection's output. That holds in most models, also with attention and FFN side by side (GPT-J).
Some multiply what a block adds by a number (Granite). In others a norm stands behind the FFN
(Gemma 2 and 3, OLMo 2, GLM-4V), and nothing of the kind holds. The model is run to find out:
vectors are added to the down projection's output, and the change of the block's output is compared
with them.

Shapes: three rows of one prompt, h outputs of a down projection, which is the hidden size.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit.layer_stats import site_of
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import run_to_block
from errata.core.types import Prompt
from errata.training.optimise import generator

PROMPT = "The name of this thing is"
#: largest relative difference that counts as rounding, in float32 and in half precision
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 3e-2

_known: WeakKeyDictionary[Backbone, dict[int, float | None]] = WeakKeyDictionary()


def stream_site(backbone: Backbone, layer: int) -> str:
    """The site at which the output of a block is changed with the fewest blocks to run again."""
    return f"text.{layer + 1}.in" if layer + 1 < backbone.depth else f"text.{layer}.block"


def stream_of(backbone: Backbone, site: str) -> str:
    """The site of the hidden states that what leaves a site of a block is added to."""
    _, layer, part = site.split(".", 2)
    return site if part == "in" else stream_site(backbone, int(layer))


def stream_scale(backbone: Backbone, layer: int) -> float | None:
    """By what the output of a block's down projection is multiplied before it is added.

    1.0 in most models. None where no number does it, as with a norm behind the FFN. Measured on
    the unedited model, once for each layer of a backbone.
    """
    scales = _known.setdefault(backbone, {})
    if layer not in scales:
        scales[layer] = _measured(backbone, layer)
    return scales[layer]


class StreamProbe(Hook):
    """Adds a vector to the down projection's output in the last two of three equal rows.

    One goes along the output itself, which a norm takes away, one in a random direction. Both are
    as long as the hidden state: the block then adds the change without loss of digits. `added`
    [3, h] and `out` [3, h] are the vectors as they were rounded, and the block's output.
    """

    def __init__(self, layer: int, columns: Tensor) -> None:
        self.into, self.down = f"text.{layer}.in", site_of(layer)
        super().__init__((self.into, self.down, f"text.{layer}.block"))
        self.columns = columns
        self.length = 1.0
        self.added = self.out = torch.empty(0)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if y.dim() != 3 or len(y) != len(self.columns):
            return y  # several streams, or rows that are joined: nothing can be compared
        place = torch.arange(len(y), device=y.device), self.columns.to(y.device)
        here = y[place].float()
        if site == self.into:
            self.length = float(here[0].norm())
        elif site == self.down:
            random = torch.randn(here.shape[1], generator=generator(0, "stream")).to(here)
            ways = torch.stack([torch.zeros_like(random), here[0], random])
            ways = self.length * torch.nn.functional.normalize(ways, dim=1)
            y = y.index_put(place, (here + ways).to(y.dtype))
            self.added = y[place].float() - here
        else:
            self.out = here
        return y


@torch.no_grad()
def _measured(backbone: Backbone, layer: int) -> float | None:
    with backbone.unedited():
        batch = backbone.encode([Prompt.of(PROMPT)] * 3)
        probe = StreamProbe(layer, batch.lengths - 1)
        with backbone.applied(probe):
            run_to_block(backbone, batch, layer)
    if not len(probe.out) or not len(probe.added):
        return None
    added = probe.added[1:].to(probe.out.device)
    change = probe.out[1:] - probe.out[:1]
    scale = float((change * added).sum() / added.square().sum())
    most = TOLERANCE if backbone.dtype in (torch.float32, torch.float64) else TOLERANCE_16_BIT
    rest = (change - scale * added).norm(dim=1) / (abs(scale) * added.norm(dim=1))
    if not bool((rest <= most).all()):  # NaN too
        return None
    return 1.0 if abs(scale - 1) <= most else scale
