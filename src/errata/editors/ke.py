"""KE (KnowledgeEditor): an LSTM reads the edit and predicts a mask for the edit's gradient.

Source: De Cao et al., EMNLP 2021; the multimodal port is VLKEB's KE at 10951b7 (preset `paper`: up
and down projections of the last three blocks, sizes 128 / 1024 / 128, RMSprop 3e-4 with 1000 steps
of warm-up and a linear end after 30000, one edit per step, Lagrange multiplier by ascent with step
0.1, margin 1e-3, shrunk by 0.8 whenever more than 90 % of the validation edits succeed).

The text "old answer >> new answer || question" is read by a bi-LSTM over a trained copy of the
model's embeddings; its final states become a condition c. For each matrix W [o, n] a small network
maps c to a_in, b_in [n], a_out, b_out [o] and eta, and with the gradient G of the edit's loss

    dW = scale * sigmoid(eta) * (G * (softmax(a_out) a_in^T) + softmax(b_out) b_in^T).

G is a sum over tokens (`algorithms.gradient_factors`), so dW is a low-rank delta: one rank per
token and one for the second term. The K edits of a group are added, each with its condition.

Training minimises the edit's loss subject to KL(unedited || edited) <= margin on training locality.
The multiplier is raised while the KL is above the margin, and is never negative.

Differences:
- the constraint is the paper's KL on locality questions; VLKEB's port has only a norm of dW;
- rephrased questions may be part of the loss (`generality_weight`, 0 in `paper`), as in Mitchell et
  al.'s version;
- the old answer is the answer of the model at hand (`belief=own`); MMEdit's `pred` is BLIP-2's
  answer, which is wrong for any other model;
- `scale` makes up for the softmax, whose entries are about 1 / o (1 in `paper`);
- with `descent` the untrained network is a step down the gradient; otherwise its sign is random
  (off in `paper`);
- gradients are float32; the port takes those of half-precision weights.

As in the port, the condition is read from text only: two edits with the same texts differ in G
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from errata.algorithms.gradient_factors import (
    Factors,
    LiveDelta,
    delta_of,
    factors,
    floor_of,
    group_factors,
)
from errata.core.editor import EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Case, Edit, Prompt
from errata.training.batches import TrainBatch
from errata.training.loop import Trainee
from errata.training.optimise import generator
from errata.training.trained_editor import TrainedEditor

CHUNK = 32  # prompts that are answered in one batch
CAP = 16  # maximum tokens of an old answer


class Ke(TrainedEditor):
    """Hypernetwork that predicts a gate for the edit's gradient."""

    name = "ke"
    state_settings = ("layers", "parts", "hidden", "condition", "width", "scale", "belief", "eos")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "layers": (4, 5, 6, 7),
            "lr": 1e-3,
            "warmup": 20,
            "schedule": "cosine",
            "steps": 600,
            "batch_size": 8,
            "locality_kinds": ("t_locality", "m_locality", "near_locality"),
            "margin": 0.1,
            "multiplier": 0.5,
            "lr_multiplier": 1e-2,
            "save_steps": 50,
        },
        "paper": {
            "layers": (-3, -2, -1),
            "hidden": 128,
            "condition": 1024,
            "width": 128,
            "scale": 1.0,
            "descent": False,
            "lr": 3e-4,
            "warmup": 1000,
            "schedule": "linear",
            "steps": 30000,
            "batch_size": 1,
            "generality_examples": 0,
            "generality_weight": 0.0,
            "margin": 1e-3,
            "eval_steps": 1000,
            "save_steps": 500,
            "eos": False,
        },
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainedEditor.Config):
        """layers: text blocks that are edited, negative from the end. parts: linear sites of a
        block that are edited. hidden: width of the LSTM that reads an edit. condition: width of its
        output c. width: width of each matrix's network. scale: largest strength of an update.
        tokens: most tokens of the text that is read. belief: the old answer, the model's `own`, or
        as `given` with the edit. reliability_weight: weight of the loss on the edit.
        generality_weight: weight of the loss on other wordings. margin: largest KL on locality
        questions. margin_end: smallest value that the margin shrinks to. shrink: factor of the
        margin whenever most held-out edits succeed. multiplier: first value of the constraint's
        multiplier. lr_multiplier: step size of the multiplier. descent: the untrained network takes
        a plain step down the gradient.
        """

        renamed: ClassVar[Mapping[str, str]] = {
            "c_rel": "reliability_weight",
            "c_gen": "generality_weight",
        }
        layers: tuple[int, ...] = (-4, -3, -2)
        parts: tuple[str, ...] = ("mlp.up", "mlp.down")
        hidden: int = 128
        condition: int = 256
        width: int = 128
        scale: float = 32.0
        tokens: int = 32
        belief: Literal["own", "given"] = "own"
        reliability_weight: float = 1.0
        generality_weight: float = 1.0
        margin: float = 0.1
        margin_end: float = 1e-7
        shrink: float = 0.8
        multiplier: float = 1.0
        descent: bool = True
        lr_multiplier: float = 1e-1

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if not self.config.locality_examples:
            of_constraint = ("margin", "margin_end", "shrink", "multiplier", "lr_multiplier")
            idle |= dict.fromkeys(of_constraint, "locality_examples=0")
        return idle

    def sites(self, backbone: Backbone) -> list[str]:
        layers = sorted(backbone.layer(i) for i in self.config.layers)
        return backbone.part_sites(layers, self.config.parts)

    def network(self, backbone: Backbone, seed: int) -> KeNetwork:
        shapes = {site: backbone.weight(site) for site in self.sites(backbone)}
        words = backbone.site("embed").first.weight
        assert isinstance(words, Tensor)
        with torch.random.fork_rng(devices=[]):  # modules of torch draw from the global generator
            torch.manual_seed(generator(seed, self.name).initial_seed() % 2**63)
            network = KeNetwork(shapes, words.detach().float().cpu(), self.config)
        return network.to(backbone.device_of(""))

    def trainee(self, backbone: Backbone, cases: Sequence[Case], seed: int) -> Trainee:
        edits = list(dict.fromkeys(c.edit for c in cases))
        texts: dict[Edit, str] = {}
        for i in range(0, len(edits), CHUNK):
            part = edits[i : i + CHUNK]
            conditions = self._conditions(backbone, part, [0] * len(part))
            texts.update(zip(part, conditions, strict=True))
        return KeTrainee(backbone, self, self.network(backbone, seed), texts)

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        networks: dict[int, KeNetwork] = {}
        results = []
        gradients = group_factors(
            backbone, request.groups, self.sites(backbone), eos=self.config.eos
        )
        each = zip(gradients, request.groups, request.prepared, strict=True)
        for row, (gradient, group, state) in enumerate(each):
            if id(state) not in networks:
                networks[id(state)] = self._trained(backbone, state)
            texts = self._conditions(backbone, group, [row] * len(group))
            ids, lengths = tokens(backbone, texts, self.config.tokens)
            with torch.no_grad():
                update = networks[id(state)](gradient, ids, lengths)
            results.append(EditResult(delta_of(update, range(len(group))), state))
        return results

    def _trained(self, backbone: Backbone, state: State) -> KeNetwork:
        network = self.network(backbone, 0)
        network.load_state_dict(dict(state.tensors))
        return network.eval()

    def _conditions(
        self, backbone: Backbone, edits: Sequence[Edit], rows: Sequence[int]
    ) -> list[str]:
        """The texts that the LSTM reads; old answers are those of the model as it is now."""
        if self.config.belief == "given":
            old = [e.old or "" for e in edits]
        else:
            batch = backbone.encode([e.prompt for e in edits], rows=rows)
            index = torch.tensor(list(rows), device=batch.ids.device)
            answers = backbone.generate(batch, [CAP] * len(edits), rows=index)
            old = [backbone.decode(a.ids) for a in answers]
        return [
            f"{o} >> {e.target.strip()} || {e.prompt.text}" for o, e in zip(old, edits, strict=True)
        ]


def tokens(backbone: Backbone, texts: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and their numbers [B], cut to `most`; no patch rewrites the texts."""
    with backbone.unedited():
        batch = backbone.encode([Prompt.of(t) for t in texts])
    return batch.ids[:, :most], batch.lengths.clamp(max=most)


class KeNetwork(nn.Module):
    """The LSTM, one small network per matrix, and multiplier and margin of the constraint."""

    margin: Tensor

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], words: Tensor, config: Ke.Config
    ) -> None:
        super().__init__()
        c = config
        self.shapes, self.scale = dict(shapes), c.scale
        self.words = nn.Embedding(words.shape[0], words.shape[1], _weight=words.clone())
        self.lstm = nn.LSTM(words.shape[1], c.hidden, batch_first=True, bidirectional=True)
        self.condition = nn.Linear(2 * c.hidden, c.condition)
        self.heads = nn.ModuleList(
            nn.Sequential(
                weight_norm(nn.Linear(c.condition, c.width)),
                nn.Tanh(),
                weight_norm(nn.Linear(c.width, 2 * (n + o) + 1)),
            )
            for n, o in shapes.values()
        )
        if c.descent:
            for (n, _), head in zip(shapes.values(), self.heads, strict=True):
                _start_as_descent(head, n)
        self.multiplier = nn.Parameter(torch.tensor([c.multiplier]))
        self.register_buffer("margin", torch.tensor([c.margin]))

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, C] the condition of texts [B, T]."""
        dedup = pack_padded_sequence(
            self.words(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(dedup)
        out: Tensor = torch.tanh(self.condition(torch.cat([last[0], last[1]], dim=-1)))
        return out

    def forward(
        self, gradient: Mapping[str, Factors], ids: Tensor, lengths: Tensor
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Site -> (A [B, T + 1, n], B [B, T + 1, o], used [B, T + 1])."""
        c = self.read(ids, lengths)
        out = {}
        for (site, (n, o)), head in zip(self.shapes.items(), self.heads, strict=True):
            a_in, b_in, a_out, b_out, eta = head(c).split([n, n, o, o, 1], dim=-1)
            f = gradient[site]
            strength = (self.scale * torch.sigmoid(eta))[:, None]
            d = torch.where(f.used[..., None], f.d, f.d.new_zeros(()))
            left = torch.cat([d * a_out.softmax(-1)[:, None], b_out.softmax(-1)[:, None]], dim=1)
            right = torch.cat([f.x * a_in[:, None], b_in[:, None]], dim=1)
            used = torch.cat([f.used, f.used.new_ones(len(c), 1)], dim=1)
            out[site] = (right, strength * left, used)
        return out


def _start_as_descent(head: nn.Module, n: int) -> None:
    """a_in = -1 and b_in = 0 whatever the condition: dW = -scale / 2 * softmax(a_out) * G."""
    assert isinstance(head, nn.Sequential)
    last: Any = head[2]
    with torch.no_grad():
        last.parametrizations.weight.original0[: 2 * n] = 0.0  # the length of a row's weights
        last.bias[:n] = -1.0
        last.bias[n : 2 * n] = 0.0


class KeTrainee(Trainee):
    def __init__(
        self, backbone: Backbone, editor: Ke, network: KeNetwork, texts: Mapping[Edit, str]
    ) -> None:
        super().__init__(backbone, editor.config)
        self.c: Ke.Config = editor.config
        self.module = self.network = network
        self.texts = texts
        self.sites = editor.sites(backbone)
        self.floor = floor_of(self.sites)
        self.weights = {
            "reliability": self.c.reliability_weight,
            "generality": self.c.generality_weight,
            "constraint": 1.0,
        }

    def optimiser(self) -> torch.optim.Optimizer:
        learnt = [p for n, p in self.network.named_parameters() if n != "multiplier"]
        raised = {"lr": self.c.lr_multiplier, "maximize": True}
        groups: list[dict[str, Any]] = [
            {"params": learnt},
            {"params": [self.network.multiplier], **raised},
        ]
        return torch.optim.RMSprop(groups, lr=self.c.lr, centered=True)

    def losses(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        gradient = factors(self.backbone, batch.edits, self.sites)
        texts = [self.texts[c.edit] for c in batch.cases]
        update = self.network(gradient, *tokens(self.backbone, texts, self.c.tokens))
        parts = {s: {"A": a, "B": b.transpose(1, 2)} for s, (a, b, _) in update.items()}
        with self.backbone.applied(LiveDelta(parts, len(batch.cases))):
            out = batch.losses(batch.logits())
        if "locality" in out:
            over = out["locality"] - self.network.margin[0]
            out["constraint"] = self.network.multiplier[0] * over
        return out

    def stepped(self) -> None:
        with torch.no_grad():
            self.network.multiplier.clamp_(min=0.0)

    def score(self, means: Mapping[str, float]) -> float:
        """Without the constraint, whose multiplier changes from step to step."""
        return sum(means.get(name, 0.0) for name in ("reliability", "generality", "locality"))

    def validated(self, means: Mapping[str, float]) -> None:
        right = [means[n] for n in ("reliability_right", "generality_right") if n in means]
        if right and min(right) > 0.9:
            self.network.margin.mul_(self.c.shrink).clamp_(min=self.c.margin_end)
