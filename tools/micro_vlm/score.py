"""Exact-match accuracy of micro-vlm per family of questions.

An answer is right when every one of its tokens, end included, is the likeliest one given the tokens
before: that is exactly when greedy decoding produces it, so no generation loop is needed.
"""

from __future__ import annotations

import random
from collections import defaultdict

import torch
from torch import Tensor, nn

from errata.benchmarks.microworld.cases import cases
from errata.synthetic.objects.world import ObjectScene
from tools.micro_vlm.data import Batch, Row, Segment, collate, context_row, image_row, text_row
from tools.micro_vlm.model import IMAGE_TOKENS

Accuracy = dict[str, tuple[int, int]]

#: First scene seeds. Training uses 0 to 1 M, tuning to 2 M, cases to 1.002 G, the card more.
TUNING_SEED, CARD_SEED = 1_000_000, 2_000_000_000
#: The groups of wordings: trained ones, and those reserved for each split.
GROUPS = ("seen", "train", "dev", "eval")


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The language model's last states [B, T, D] under the batch's own mask and positions."""
    embeds = model.model.language_model.embed_tokens(batch.ids)
    if batch.pixels is not None:
        states = model.model.vision_tower(pixel_values=batch.pixels).last_hidden_state[:, 1:]
        image = model.model.multi_modal_projector(states)
        embeds = torch.cat([embeds[:, :1], image, embeds[:, 1 + IMAGE_TOKENS :]], 1)
    return model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.allow, position_ids=batch.pos, use_cache=False
    ).last_hidden_state


@torch.no_grad()
def count(model: nn.Module, batch: Batch, into: dict[str, list[int]]) -> None:
    """Adds the numbers of right and of all answers of one batch, per family."""
    guess = model.lm_head(forward(model, batch)).argmax(-1)
    wrong = (guess != batch.labels) & (batch.labels >= 0)
    for i, families in enumerate(batch.families):
        for k, family in enumerate(families, 1):
            into[family][0] += int(not wrong[i][batch.segment[i] == k].any())
            into[family][1] += 1


def rows_of(kind: str, rng: random.Random, n: int, first_seed: int, group: str) -> list[Row]:
    if kind == "image":
        return [image_row(rng, first_seed, group) for _ in range(n)]
    if kind == "text":
        return [text_row(rng, group=group) for _ in range(n)]
    return [context_row(rng, first_seed, group) for _ in range(n)]


def accuracy(model: nn.Module, n: int, first_seed: int, seed: str, group: str = "seen") -> Accuracy:
    """family -> (right, asked), over n rows of each kind. `group` picks the wordings."""
    model.eval()
    into: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rng = random.Random(f"{seed}/{group}")
    for kind in ("image", "text", "context"):
        rows = rows_of(kind, rng, n, first_seed, group)
        for part in ([r for r in rows if r.scene], [r for r in rows if not r.scene]):
            for i in range(0, len(part), 40):
                count(model, collate(part[i : i + 40]), into)
    model.train()
    return {k: (v[0], v[1]) for k, v in sorted(into.items())}


def base_accuracy(model: nn.Module, task: str, split: str) -> Accuracy:
    """origin/asked -> (right, asked): the edit questions of microworld before any edit.

    For counterfactual cases the right answer is the one that the edit replaces, for corrections it
    is the edit's own target.
    """
    into: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rows = []
    for c in cases(task, split, "disjoint", 0):
        (image,) = c.edit.prompt.images
        answer = c.edit.old or c.edit.target
        segment = Segment(c.edit.prompt.text, answer, f"{c.origin}/{c.asked}")
        scene = ObjectScene.parse(image.uri.removeprefix("microworld:"))
        rows.append(Row(scene, [("\n", False)], [segment]))
    for i in range(0, len(rows), 100):
        count(model, collate(rows[i : i + 100]), into)
    return {k: (v[0], v[1]) for k, v in sorted(into.items())}


def markdown(columns: dict[str, Accuracy]) -> str:
    """Families down, columns across, in percent with the number asked."""
    families = sorted({f for acc in columns.values() for f in acc})
    lines = ["| family | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for f in families:
        cells = []
        for acc in columns.values():
            a, b = acc.get(f, (0, 0))
            cells.append(f"{100 * a / b:.1f} ({b})" if b else "")
        lines.append(f"| {f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(acc: Accuracy) -> str:
    return " ".join(f"{k}={100 * a / b:.0f}({b})" for k, (a, b) in acc.items())
