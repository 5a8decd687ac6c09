"""Trains micro-umm from scratch on one CPU thread, and writes checkpoints into a work folder.

    python -m tools.micro_umm.train --help

Stages: L the text model, C the generator from codes of a scene's attributes (no text), D projector
and generator from the hidden states of the finished text model, E as D with more early flow times.
C does not depend on L, so the two may run at the same time. `--resume` continues from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig

from errata.backbones._micro_umm import MicroUmm, MicroUmmConfig, to_patches
from errata.synthetic.shapes.objects import ATTRIBUTES, STAGE_OF, ShapeScene
from tools.micro_umm import data

ASSETS = Path(__file__).resolve().parents[2] / "src" / "errata" / "assets" / "micro-umm"
EMA, NULL_SHARE, CLIP = 0.998, 0.1, 0.15
#: characters from which on a prompt is long
LONG = 110


def config() -> MicroUmmConfig:
    tok = data.tokenizer()
    text = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return MicroUmmConfig(text_config=text)


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), f"cpu {time.process_time():.0f}s", text, flush=True)


def rate(step: int, steps: int, warm: int = 40, floor: float = 0.03) -> float:
    """Linear warm-up, then a cosine down to `floor`."""
    if step < warm:
        return (step + 1) / warm
    x = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x))


def trained(
    name: str,
    module: nn.Module,
    lr: float,
    steps: int,
    loss: Callable[[int], Tensor],
    work: Path,
    *,
    resume: bool,
    check: Callable[[int], None] | None = None,
    ema: nn.Module | None = None,
) -> None:
    """Runs a stage, with a checkpoint every 200 steps; `ema` follows `module` slowly."""
    opt = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    start, path = 0, work / f"{name}.pt"
    if resume and path.exists():
        kept = torch.load(path)
        start = kept["step"]
        module.load_state_dict(kept["model"])
        opt.load_state_dict(kept["opt"])
        if ema is not None:
            ema.load_state_dict(kept["ema"])
    mean = 0.0
    for step in range(start, steps):
        for g in opt.param_groups:
            g["lr"] = lr * rate(step, steps)
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        mean = value.item() if step == start else 0.95 * mean + 0.05 * value.item()
        if ema is not None:
            keep = min(EMA, (step + 1) / (step + 10))
            for slow, fast in zip(ema.parameters(), module.parameters(), strict=True):
                slow.data.lerp_(fast.data, 1 - keep)
        if step % 25 == 24:
            log(f"{name} {step + 1}/{steps} loss {mean:.4f}")
        if step % 200 == 199 or step == steps - 1:
            torch.save(
                {
                    "step": step + 1,
                    "model": module.state_dict(),
                    "opt": opt.state_dict(),
                    "ema": ema.state_dict() if ema is not None else {},
                },
                path,
            )
            if check is not None:
                check(step + 1)


# -- L: the text model --------------------------------------------------------------------------

#: texts of a step: maker of one text, rows, weight of the batch's loss
TEXTS: tuple[tuple[tuple[Callable[[random.Random], list[data.Piece]], int], ...], ...] = (
    ((data.fact_text, 56),),
    ((data.dense_text, 20), (data.generic_text, 4)),
    ((data.rationale_text, 8), (data.informed_text, 8)),
)


def text_loss(model: nn.Module, rng: random.Random) -> Tensor:
    total = torch.zeros(())
    for group in TEXTS:
        rows = [make(rng) for make, n in group for _ in range(n)]
        ids, mask, weight = data.text_batch(rows)
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        keep = weight[:, 1:] > 0
        logits = model.lm_head(hidden[keep])
        each = F.cross_entropy(logits, ids[:, 1:][keep], reduction="none")
        w = weight[:, 1:][keep]
        total = total + (each * w).sum() / w.sum()
    return total


@torch.no_grad()
def facts_right(model: nn.Module, group: str = "seen", n: int = 300) -> float:
    """Share of facts whose value and end are what the model finds likeliest at every step."""
    from errata.synthetic.shapes import language as lang
    from errata.synthetic.shapes.objects import OBJECTS, fact

    rng = random.Random(f"facts/{group}")
    rows: list[list[data.Piece]] = []
    for _ in range(n):
        thing, attribute = rng.choice(OBJECTS), rng.choice(tuple(ATTRIBUTES))
        question = lang.question(attribute, thing.name, rng.choice(lang.wordings(attribute, group)))
        rows.append([(question, 0.0), (f" {fact(thing, attribute)}", 1.0), ("</s>", 1.0)])
    return follows(model, rows)


@torch.no_grad()
def follows(model: nn.Module, rows: list[list[data.Piece]]) -> float:
    """Share of rows of which every token of weight 1 is the likeliest one."""
    ids, mask, weight = data.text_batch(rows)
    best = model(input_ids=ids, attention_mask=mask).logits[:, :-1].argmax(-1)
    wrong = (best != ids[:, 1:]) & (weight[:, 1:] == 1)
    return float((~wrong.any(1)).float().mean())


def train_text(model: MicroUmm, work: Path, steps: int, lr: float, resume: bool) -> None:
    lm = model.language_model

    def check(step: int) -> None:
        rng = random.Random("check")
        shares = {
            make.__name__: follows(lm, [make(rng) for _ in range(100)])
            for make in (data.dense_text, data.rationale_text, data.informed_text)
        }
        shown = " ".join(f"{k} {100 * v:.0f}" for k, v in shares.items())
        held = 100 * facts_right(lm, "held")
        log(f"L {step} facts {100 * facts_right(lm):.1f} held {held:.1f} {shown}")

    trained(
        "L", lm, lr, steps, lambda step: text_loss(lm, random.Random(f"L/{step}")), work,
        resume=resume, check=check,
    )  # fmt: skip


# -- C and D: the generator ---------------------------------------------------------------------


class Codes(nn.Module):
    """A scene as seven vectors: one per attribute, and one for the setting."""

    def __init__(self, c: int) -> None:
        super().__init__()
        values = [(a, v) for a, vs in ATTRIBUTES.items() for v in ("", *vs)]
        values += [("setting", s) for s in STAGE_OF]
        self.index = {pair: k for k, pair in enumerate(values)}
        self.table = nn.Embedding(len(values), c)
        self.norm = nn.LayerNorm(c)

    def forward(self, scenes: list[ShapeScene]) -> Tensor:
        keys = (*ATTRIBUTES, "setting")
        ids = torch.tensor([[self.index[k, getattr(s, k)] for k in keys] for s in scenes])
        out: Tensor = self.norm(self.table(ids))
        return out


@dataclass(frozen=True, slots=True)
class Times:
    """How t is drawn (sigmoid of a normal with this mean) and weighted, 1 / (1 - t) ** power.

    Power 2 is the loss in velocity. It hardly feels the early times, in which shape and badge are
    decided: after C and D 19 and 63 % of shapes were right. Hence E.
    """

    mean: float = 0.0
    power: float = 2.0


EARLY = Times(-0.8, 1.0)


def picture_loss(
    generator: nn.Module,
    x_BNP: Tensor,
    states: Tensor,
    mask: Tensor,
    rng: torch.Generator,
    times: Times = Times(),
) -> Tensor:
    """Flow matching with the picture predicted; a tenth of the rows see no prompt."""
    rows = x_BNP.shape[0]
    t = torch.sigmoid(torch.randn(rows, generator=rng) + times.mean)
    noise = torch.randn(x_BNP.shape, generator=rng)
    drop = torch.rand(rows, generator=rng) < NULL_SHARE
    first = torch.arange(states.shape[1]) == 0
    states = torch.where(drop[:, None, None], generator.null.expand_as(states), states)
    mask = torch.where(drop[:, None], first[None].to(mask.dtype), mask)
    x_t = t[:, None, None] * x_BNP + (1 - t)[:, None, None] * noise
    predicted = generator.picture(x_t, t, states, mask)
    weight = 1 / (1 - t).clamp(min=CLIP) ** times.power
    each = ((predicted - x_BNP) ** 2).mean(dim=(1, 2))
    loss: Tensor = (each * weight).mean()
    return loss


def train_codes(
    model: MicroUmm, work: Path, steps: int, lr: float, rows: int, resume: bool
) -> None:
    torch.manual_seed(3)
    both = nn.ModuleDict({"codes": Codes(model.config.width), "generator": model.generator})

    def loss(step: int) -> Tensor:
        rng = random.Random(f"C/{step}")
        scenes = [data.random_scene(rng) for _ in range(rows)]
        x = to_patches(data.pictures(scenes), model.config.patch)
        states = both["codes"](scenes)
        mask = torch.ones(states.shape[:2], dtype=torch.long)
        noise = torch.Generator().manual_seed(step)
        return picture_loss(both["generator"], x, states, mask, noise)

    trained("C", both, lr, steps, loss, work, resume=resume, ema=copy.deepcopy(both))


def train_picture(
    model: MicroUmm,
    work: Path,
    steps: int,
    lr: float,
    rows: int,
    resume: bool,
    name: str = "D",
    times: Times = Times(),
) -> None:
    lm = model.language_model.eval().requires_grad_(False)
    both = nn.ModuleDict({"projector": model.projector, "generator": model.generator})

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{name}/{step}")
        drawn_rows = [data.picture_row(rng) for _ in range(rows)]
        noise = torch.Generator().manual_seed(1_000_000 * "CDE".index(name) + step)
        total = torch.zeros(())
        # rationales are three times as long as captions: apart, they need half the padding
        for part in (
            [m for m in drawn_rows if len(m[0]) < LONG],
            [m for m in drawn_rows if len(m[0]) >= LONG],
        ):
            if not part:
                continue
            x = to_patches(data.pictures([s for _, s in part]), model.config.patch)
            ids, mask, _ = data.text_batch([[(text, 0.0)] for text, _ in part])
            with torch.no_grad():
                tap = lm.model(input_ids=ids, attention_mask=mask).last_hidden_state
            each = picture_loss(both["generator"], x, both["projector"](tap), mask, noise, times)
            total = total + each * (len(part) / rows)
        return total

    trained(name, both, lr, steps, loss, work, resume=resume, ema=copy.deepcopy(both))


def fresh() -> MicroUmm:
    torch.manual_seed(1)
    return MicroUmm(config())


def load_text(model: MicroUmm, work: Path) -> None:
    model.language_model.load_state_dict(torch.load(work / "L.pt")["model"])


def load_codes(model: MicroUmm, work: Path) -> None:
    kept = torch.load(work / "C.pt")["ema"]
    model.generator.load_state_dict(
        {k.removeprefix("generator."): v for k, v in kept.items() if k.startswith("generator.")}
    )


def load_picture(model: MicroUmm, work: Path) -> None:
    last = work / "E.pt"
    kept = torch.load(last if last.exists() else work / "D.pt")["ema"]
    for part in ("projector", "generator"):
        weights = {
            k.removeprefix(f"{part}."): v for k, v in kept.items() if k.startswith(f"{part}.")
        }
        getattr(model, part).load_state_dict(weights)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, default=Path("work/micro-umm"))
    p.add_argument("--stages", default="LCDE")
    p.add_argument(
        "--steps", type=int, nargs=4, default=(600, 1000, 2300, 1400), metavar=tuple("LCDE")
    )
    p.add_argument("--resume", action="store_true", help="from the last checkpoints in --work")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = fresh()
    if "L" in args.stages:
        train_text(model, args.work, args.steps[0], 2e-3, args.resume)
    if "C" in args.stages:
        train_codes(model, args.work, args.steps[1], 1.5e-3, 64, args.resume)
    if "D" in args.stages:
        load_text(model, args.work)
        load_codes(model, args.work)
        train_picture(model, args.work, args.steps[2], 1e-3, 64, args.resume)
    if "E" in args.stages:
        load_text(model, args.work)
        load_picture(model, args.work)
        train_picture(model, args.work, args.steps[3], 1e-3, 64, args.resume, "E", EARLY)


if __name__ == "__main__":
    main()
