"""What the model says about drawings, for development: names and facts, in the training's dtype.

The figures of the card come from card.py, through `errata.load("pocket-vlm")`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.benchmarks._countries import COUNTRIES
from errata.benchmarks.pocket.wordings import IN_TEXT, NAMING, RELATIONS
from tools.pocket_vlm.augment import plain
from tools.pocket_vlm.data import Drawings, ids_of, tokenizer
from tools.pocket_vlm.model import Eye

LENGTH = 12


def begins(text: str, answer: str) -> bool:
    """Whether a continuation begins with an answer, as whole words."""
    text, answer = text.strip().casefold(), answer.casefold()
    return text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum()


@torch.no_grad()
def said(model: nn.Module, image: Tensor, question: str) -> list[str]:
    """Greedy continuations behind image tokens [n, IMAGE_TOKENS, width]."""
    words = F.embedding(torch.tensor(ids_of("\n" + question)), model.get_input_embeddings().weight)
    whole = torch.cat((image.to(words.dtype), words.expand(len(image), -1, -1)), 1)
    out = model.generate(
        inputs_embeds=whole,
        attention_mask=torch.ones(whole.shape[:2], dtype=torch.long),
        max_new_tokens=LENGTH,
        do_sample=False,
        pad_token_id=0,
    )
    return [tokenizer().decode(row, skip_special_tokens=True) for row in out]


@torch.no_grad()
def said_in_text(model: nn.Module, names: Sequence[str], question: str) -> list[str]:
    out = []
    for name in names:
        ids = torch.tensor([ids_of(IN_TEXT.format(name, question))])
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=0,
        )
        out.append(tokenizer().decode(new[0, ids.shape[1] :], skip_special_tokens=True))
    return out


def answer_of(country: int, relation: str) -> str:
    return str(getattr(COUNTRIES[country], relation))


@torch.no_grad()
def images_of(eye: Eye, drawings: Drawings) -> Tensor:
    eye.eval()
    out = torch.cat([eye(plain(x)) for x in drawings.pictures.split(64)])
    eye.train()
    return out


def naming(model: nn.Module, eye: Eye, drawings: Drawings, question: str = NAMING[0]) -> float:
    """The share of drawings whose country is named."""
    texts = said(model, images_of(eye, drawings), question)
    pairs = zip(texts, drawings.labels.tolist(), strict=True)
    return sum(begins(t, COUNTRIES[c].name) for t, c in pairs) / len(drawings)


def facts(model: nn.Module, eye: Eye, drawings: Drawings) -> dict[str, tuple[int, int]]:
    """relation -> (right, asked) about drawings."""
    out = {}
    image = images_of(eye, drawings)
    for relation, question in RELATIONS.items():
        keep = [i for i, c in enumerate(drawings.labels.tolist()) if answer_of(c, relation)]
        texts = said(model, image[keep], question)
        answers = [answer_of(int(drawings.labels[i]), relation) for i in keep]
        out[relation] = (sum(map(begins, texts, answers)), len(keep))
    return out
