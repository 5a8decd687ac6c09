"""The semantic and the truthfulness space of a set of triplets, and the direction between them.

Source: UniKE Sec. 3.3. For each block, a state of `unike` holds the states of the triplets, both
encoders, and for each space the direction zeta = mean(positive) - mean(negative), mapped back to
the residual stream by a linear decoder.

Shapes: n triplets, d width, e encoded width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.recorder import Recorder
from errata.core.state import PrepareContext
from errata.core.types import Case
from errata.editors.unike.encoders import (
    EncoderSchedule,
    TrainedEncoders,
    encode,
    semantic_loss,
    train_encoder,
    truth_loss,
    unit,
)
from errata.editors.unike.probes import answers_alone, balanced, decisions, ridge_probe
from errata.editors.unike.triplets import Triplet, TripletStates, states_of

HELD_OUT = 0.2
TRUTH_WIDTH = 512
KNOWN = 400
CHUNK = 32


def disentangled(
    backbone: Backbone,
    triplets: Sequence[Triplet],
    cases: Sequence[Case],
    layers: Sequence[int],
    schedule: EncoderSchedule,
    centre: bool,
    rng: torch.Generator,
    work: PrepareContext | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under `text.{i}/`, and JSON-ready numbers of how well the spaces separate."""
    states = states_of(backbone, [(t.prompt, t.true, t.wrong) for t in triplets], layers, work)
    train, held = split(triplets, rng)
    facts = known_facts(cases, rng)
    control = states_of(backbone, facts, layers, work) if facts else None
    lengths = output_lengths(backbone, triplets, layers)
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"triplets": len(triplets), "held out": len(held), "blocks": {}}
    for i in layers:
        sem, pos, neg = (part[i].float() for part in (states.sem, states.pos, states.neg))
        middle = sem.mean(0) if centre else torch.zeros(sem.shape[1])
        semantic, truth = _encoders(sem - middle, pos, neg, train, held, schedule, rng)
        answers = torch.cat([pos, neg])
        block: dict[str, Tensor] = {
            "sem": states.sem[i], "pos": states.pos[i], "neg": states.neg[i],
            "centre": middle.half(), "zeta/length": lengths[i],
        }  # fmt: skip
        for name, space, weights in (
            ("semantic", "enc_sem", semantic.weights),
            ("truthfulness", "enc_tru", truth.weights),
        ):
            block |= {f"{space}/{k}": w.half() for k, w in weights.items()}
            encoded = unit(encode(answers, weights))
            decoder = _decoder(encoded, answers - answers.mean(0))
            zeta = encoded[: len(pos)].mean(0) - encoded[len(pos) :].mean(0)
            block[f"zeta/{name}"] = unit(decoder @ zeta)
            block[f"decoder/{name}"] = decoder.half()
        tensors |= {f"text.{i}/{k}": v for k, v in block.items()}
        report: dict[str, Any] = {"semantic": _log(semantic), "truthfulness": _log(truth)}
        report |= separability(pos, neg, truth, triplets, train, held)
        if control is not None:
            report["known facts"] = _of_known(control, i, truth, block["zeta/truthfulness"])
        meta["blocks"][str(i)] = report
    return tensors, meta


def split(triplets: Sequence[Triplet], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(train, held-out) indices: all triplets about one subject are on one side."""
    subjects = sorted({t.subject for t in triplets})
    order = torch.randperm(len(subjects), generator=rng).tolist()
    count = max(1, round(HELD_OUT * len(subjects)))
    out = {subjects[i] for i in order[:count]} if len(subjects) > 1 else set()
    held = [i for i, t in enumerate(triplets) if t.subject in out]
    train = [i for i, t in enumerate(triplets) if t.subject not in out]
    return torch.tensor(train, dtype=torch.long), torch.tensor(held or train, dtype=torch.long)


def known_facts(cases: Sequence[Case], rng: torch.Generator) -> list[tuple[Any, str, str]]:
    """(question, the model's true answer, counterfactual answer) of some cases."""
    facts = [
        (c.edit.prompt, c.edit.old, c.edit.target.strip())
        for c in cases
        if c.origin == "counterfactual" and c.edit.old
    ]
    return [facts[i] for i in torch.randperm(len(facts), generator=rng)[:KNOWN].tolist()]


def output_lengths(
    backbone: Backbone, triplets: Sequence[Triplet], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Per block, the mean length of the FFN's outputs over prompt tokens of some questions."""
    sites = {i: f"text.{i}.mlp" for i in layers}
    total, count = dict.fromkeys(layers, 0.0), 0
    for start in range(0, min(len(triplets), 4 * CHUNK), CHUNK):
        batch = backbone.encode([t.prompt for t in triplets[start : start + CHUNK]])
        watch = Recorder(sites.values())
        with torch.no_grad(), backbone.applied(watch):
            backbone.logits(batch)
        real = batch.mask.bool()
        count += int(real.sum())
        for i, site in sites.items():
            y = watch.y[site]
            total[i] += float(y.float().norm(dim=-1)[real.to(y.device)].sum())
    return {i: torch.tensor(total[i] / count) for i in layers}


def _encoders(
    anchor: Tensor,
    pos: Tensor,
    neg: Tensor,
    train: Tensor,
    held: Tensor,
    schedule: EncoderSchedule,
    rng: torch.Generator,
) -> tuple[TrainedEncoders, TrainedEncoders]:
    states, width, t = torch.cat([pos, neg]), pos.shape[1], schedule.temperature
    semantic = train_encoder(
        states,
        lambda enc, n: semantic_loss(anchor[n], enc(pos[n]), enc(neg[n]), t),
        train, held, width, schedule, rng,
    )  # fmt: skip
    truth = train_encoder(
        states,
        lambda enc, n: truth_loss(enc(pos[n]), enc(neg[n]), t),
        train, held, min(TRUTH_WIDTH, 2 * width), schedule, rng,
    )  # fmt: skip
    return semantic, truth


def _decoder(encoded_ne: Tensor, states_nd: Tensor, ridge: float = 1e-3) -> Tensor:
    """[d, e] W that minimises |W z - (h - mean)|^2, with a ridge relative to the mean variance."""
    z = encoded_ne.double()
    gram = z.T @ z
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight: Tensor = torch.linalg.solve(gram, z.T @ states_nd.double())
    return weight.T.float()


def _log(trained: TrainedEncoders) -> dict[str, float | None]:
    """Epochs and losses; a loss of a set that is too small is None."""
    losses = {"train loss": trained.train_loss, "held-out loss": trained.held_out_loss}
    rounded = {k: round(v, 4) if math.isfinite(v) else None for k, v in losses.items()}
    return {"epochs": trained.epochs, **rounded}


def separability(
    pos: Tensor,
    neg: Tensor,
    truth: TrainedEncoders,
    triplets: Sequence[Triplet],
    train: Tensor,
    held: Tensor,
) -> dict[str, float | None]:
    """Accuracies of probes on held-out subjects, and of answers alone."""
    labels = torch.cat([torch.ones(len(train)), -torch.ones(len(train))])
    pairs = [(t.true, t.wrong) for t in triplets]
    old, new = [pairs[i] for i in train.tolist()], [pairs[i] for i in held.tolist()]
    out: dict[str, float | None] = {"answers alone": answers_alone(old, new)}
    for name, p, n in (
        ("states", pos, neg),
        ("truthfulness space", encode(pos, truth.weights), encode(neg, truth.weights)),
    ):
        p, n = unit(p), unit(n)
        line = ridge_probe(torch.cat([p[train], n[train]]), labels)
        right_pos, right_neg = decisions(p[held], line) > 0, decisions(n[held], line) <= 0
        out[f"probe on {name}"] = torch.cat([right_pos, right_neg]).float().mean().item()
        out[f"probe on {name}, answers balanced"] = balanced(
            right_pos.float(), right_neg.float(), new
        )
    return {k: None if v is None else round(v, 4) for k, v in out.items()}


def _of_known(
    control: TripletStates, layer: int, truth: TrainedEncoders, zeta: Tensor
) -> dict[str, float]:
    """On facts that the model knows: the share whose true answer lies further along zeta.

    Near 1, zeta points to the truth; near 0, away from what the model expects, true or not.
    """
    true, false = control.pos[layer].float(), control.neg[layer].float()
    along = ((true - false) @ zeta > 0).float().mean().item()
    encoded = unit(encode(true, truth.weights)), unit(encode(false, truth.weights))
    apart = (encoded[0] - encoded[1]).norm(dim=1).mean().item()
    return {
        "n": len(true),
        "true further along zeta": round(along, 4),
        "mean distance in the truthfulness space": round(apart, 4),
    }
