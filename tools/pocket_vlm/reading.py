"""Stage B, through the frozen language model: pictures are read like the name that they stand for.

Behind a picture stand several sentences; each sees the picture and itself. Two losses: what the
language model says after a sentence of DISTILLED with the caption in front (its own words with
the name, no fact is a label), and the name of the country after a sentence of NAMING.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.benchmarks._countries import COUNTRIES
from errata.benchmarks.pocket.wordings import DISTILLED, NAMING
from tools.pocket_vlm.augment import augmented
from tools.pocket_vlm.data import Drawings, captions, ids_of
from tools.pocket_vlm.model import IMAGE_TOKENS, Eye

#: most tokens behind a picture, a constant so that the compiled layers see one shape
ROOM = 48
#: how many of the teacher's likeliest tokens are compared
KEPT = 128
PER_PICTURE = 3
NAMED_SHARE = 0.35
STATE_WEIGHT = 0.5
#: highest learning rates
RATES = {"tower": 1e-4, "projector": 4e-4}


@dataclass(frozen=True, slots=True)
class Sentence:
    """ids begin with the line break behind the picture. named: how many of them are the answer.

    row: index in DISTILLED, -1 for a sentence of NAMING.
    """

    ids: tuple[int, ...]
    row: int = -1
    named: int = 0


def naming(country: int, wording: str) -> Sentence:
    asked = ids_of("\n" + wording)
    answer = ids_of(f" {COUNTRIES[country].name}.\n")
    return Sentence((*asked, *answer), -1, len(answer))


def distilled() -> list[Sentence]:
    return [Sentence(tuple(ids_of("\n" + text)), i) for i, text in enumerate(DISTILLED)]


def packed(rows: Sequence[Sequence[Sentence]], room: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids and positions [n, room] of the sentences behind each picture, and the mask to add."""
    total = IMAGE_TOKENS + room
    ids = torch.zeros(len(rows), room, dtype=torch.long)
    places = torch.zeros(len(rows), total, dtype=torch.long)
    places[:, :IMAGE_TOKENS] = torch.arange(IMAGE_TOKENS)
    sees = torch.eye(total, dtype=torch.bool).repeat(len(rows), 1, 1)
    sees[:, :IMAGE_TOKENS, :IMAGE_TOKENS] |= torch.ones(IMAGE_TOKENS, IMAGE_TOKENS).tril().bool()
    for r, row in enumerate(rows):
        at = IMAGE_TOKENS
        for s in row:
            end = at + len(s.ids)
            ids[r, at - IMAGE_TOKENS : end - IMAGE_TOKENS] = torch.tensor(s.ids)
            places[r, at:end] = torch.arange(IMAGE_TOKENS, IMAGE_TOKENS + len(s.ids))
            sees[r, at:end, :IMAGE_TOKENS] = True
            sees[r, at:end, at:end] = torch.ones(len(s.ids), len(s.ids)).tril().bool()
            at = end
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.bfloat16).min)
    return ids, places, mask[:, None].bfloat16()


class Reader:
    """The frozen language model behind image tokens."""

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        self.model = model
        model.config._attn_implementation = "eager"  # its backward is faster on a CPU
        self.embedding = model.get_input_embeddings().weight
        if compiled:
            for layer in model.model.layers:
                layer.compile()

    def states(self, image: Tensor, ids: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """[n, room, width] final states of the tokens behind the picture."""
        words = F.embedding(ids, self.embedding)
        whole = torch.cat((image.to(words.dtype), words), 1)
        out = self.model.model(
            inputs_embeds=whole, attention_mask=mask, position_ids=places, use_cache=False
        ).last_hidden_state
        return out[:, IMAGE_TOKENS:]

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding).float()


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the language model says after every sentence of DISTILLED, with the caption in front.

    states [countries, sentences, longest, width]; top and scores [.., KEPT] the likeliest tokens.
    """

    sentences: list[Sentence]
    states: Tensor
    top: Tensor
    scores: Tensor

    @classmethod
    def asked(cls, reader: Reader) -> Teacher:
        """A forward for every country."""
        sentences = distilled()
        shape = (len(COUNTRIES), len(sentences), max(len(s.ids) for s in sentences))
        width = reader.embedding.shape[1]
        out = cls(
            sentences,
            torch.zeros(*shape, width, dtype=torch.bfloat16),
            torch.zeros(*shape, KEPT, dtype=torch.int32),
            torch.zeros(*shape, KEPT, dtype=torch.bfloat16),
        )
        rows = _rows(sentences)
        inputs = packed(rows, ROOM)
        places = [(s.row, n, r, at) for r, at, s, n in _places(rows)]
        for country, caption in enumerate(captions()):
            image = F.embedding(caption.expand(len(rows), -1), reader.embedding)
            with torch.no_grad():
                states = reader.states(image, *inputs)
                for row, n, r, at in places:
                    own = states[r, at : at + n]
                    top = reader.logits(own).topk(KEPT, -1)
                    out.states[country, row, :n] = own
                    out.top[country, row, :n] = top.indices.int()
                    out.scores[country, row, :n] = top.values.bfloat16()
        return out


def _rows(sentences: Sequence[Sentence]) -> list[list[Sentence]]:
    """All sentences, as many behind each picture as there is room for."""
    rows: list[list[Sentence]] = [[]]
    for s in sentences:
        if sum(len(t.ids) for t in (*rows[-1], s)) > ROOM:
            rows.append([])
        rows[-1].append(s)
    return rows


def _places(rows: Sequence[Sequence[Sentence]]) -> Iterator[tuple[int, int, Sentence, int]]:
    """(row, where it begins behind the picture, sentence, its length)."""
    for r, row in enumerate(rows):
        at = 0
        for s in row:
            yield r, at, s, len(s.ids)
            at += len(s.ids)


def chosen(country: int, sentences: Sequence[Sentence], rng: random.Random) -> list[Sentence]:
    """Some sentences for one picture, as many as there is room for."""
    row, used = [], 0
    for _ in range(PER_PICTURE):
        if rng.random() < NAMED_SHARE:
            s = naming(country, rng.choice(NAMING))
        else:
            s = rng.choice(sentences)
        if used + len(s.ids) <= ROOM:
            row.append(s)
            used += len(s.ids)
    return row


def losses(
    reader: Reader,
    teacher: Teacher,
    image: Tensor,
    rows: Sequence[Sequence[Sentence]],
    labels: Tensor,
) -> dict[str, Tensor]:
    """`say`: divergence from the teacher's words; `state`: from its states; `name`: the names."""
    ids, places, mask = packed(rows, ROOM)
    states = reader.states(image, ids, places, mask)
    told, names, wanted = [], [], []
    targets: list[tuple[int, int, int]] = []
    for r, at, s, n in _places(rows):
        if s.named:
            names.append(states[r, at + n - s.named - 1 : at + n - 1])
            wanted.extend(s.ids[n - s.named :])
        else:
            told.append(states[r, at : at + n])
            targets.extend((int(labels[r]), s.row, i) for i in range(n))
    out: dict[str, Tensor] = {}
    if told:
        c, s, i = (torch.tensor(t) for t in zip(*targets, strict=True))
        mine, right = torch.cat(told), teacher.states[c, s, i].float()
        words = F.embedding(teacher.top[c, s, i], reader.embedding)
        scores = torch.einsum("pkd,pd->pk", words, mine).float()
        goal = teacher.scores[c, s, i].float().log_softmax(-1)
        out["say"] = F.kl_div(scores.log_softmax(-1), goal, reduction="batchmean", log_target=True)
        out["state"] = (mine.float() - right).square().sum(-1).mean() / right.square().sum(
            -1
        ).mean()
    if names:
        out["name"] = F.cross_entropy(reader.logits(torch.cat(names)), torch.tensor(wanted))
    return out


def train(
    eye: Eye,
    reader: Reader,
    teacher: Teacher,
    trained: Drawings,
    steps: int,
    batch: int,
    out: Path,
    log: Callable[[str], None],
    look: Callable[[], str],
) -> None:
    """Trains tower and projector in place. look: measures, and says so in one line."""
    gen, rng = torch.Generator().manual_seed(1), random.Random("reading")
    groups = eye.groups(**RATES)
    opt = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    sched = torch.optim.lr_scheduler.OneCycleLR(
        opt, [group["lr"] for group in groups], total_steps=steps, pct_start=0.08
    )
    start, shown = time.time(), dict[str, float]()
    for step in range(steps):
        pick = torch.randint(len(trained), (batch,), generator=gen)
        labels = trained.labels[pick]
        rows = [chosen(int(c), teacher.sentences, rng) for c in labels]
        with torch.autocast("cpu", torch.bfloat16):
            image = eye(augmented(trained.pictures[pick], gen))
        parts = losses(reader, teacher, image, rows, labels)
        weights = {"say": 1.0, "state": STATE_WEIGHT, "name": 1.0}
        loss = torch.stack([weights[k] * v for k, v in parts.items()]).sum()
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
        opt.step()
        sched.step()
        for k, v in parts.items():
            shown[k] = 0.95 * shown.get(k, v.item()) + 0.05 * v.item()
        if step % 25 == 24 or step == steps - 1:
            text = " ".join(f"{k}={v:.3f}" for k, v in shown.items())
            log(f"B {step + 1}/{steps} {time.time() - start:.0f}s {text}")
        if step % 200 == 199 or step == steps - 1:
            torch.save(eye.state_dict(), out)
            log(f"B {step + 1} {look()}")
