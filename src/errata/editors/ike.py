"""IKE: in-context editing. Puts the fact and similar demonstrations in front of the question.

Source: Zheng et al., EMNLP 2023; EasyEdit's multimodal port (14cea82): per training case three
demonstrations (copy, update, retain), embedded with all-MiniLM-L6-v2, the k = 32 most similar to
the edit in front of `New Fact: x y / Prompt: query`, one image first. Preset `paper`: k = 32, scope
always, MiniLM. EasyEdit shows the fact twice, as a copy demonstration and as the new fact: preset
`easyedit`, or `copy=true`; elsewhere it is shown once.

Differences:
- the demonstrations come from the benchmark's train split only;
- all edits of a sequence stay in the memory, and the facts nearest to the question are shown
  (EasyEdit shows the last edit only, so it is not sequential);
- scope `retrieved` shows nothing if no fact is near enough, decided from the question's text;
- the most similar demonstration stands next to the question;
- a prompt that is too long drops its least similar demonstrations, and counts them;
- nothing is placed at random (UniKE's first commit inserts the fact anywhere).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from errata.algorithms.demonstrations import copy_line, corpus, similar
from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Case, Edit
from errata.networks.embedder import choose, embed
from errata.patches.context import Context, ContextSettings, Fact
from errata.training.optimise import generator


class Ike(Editor):
    """Facts in front of the prompt."""

    name = "ike"
    state_settings = ("encoder", "corpus")
    without_state = "Without one: --set demonstrations=0, which shows the new fact alone."
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "encoder": "backbone",
            "demonstrations": 0,
            "scope": "retrieved",
            "threshold": 0.5,
        },
        "paper": {"demonstrations": 32, "scope": "always", "encoder": "minilm", "facts": 1},
        "easyedit": {
            "demonstrations": 32,
            "scope": "always",
            "encoder": "minilm",
            "facts": 1,
            "copy": True,
        },
        "zero_shot": {"demonstrations": 0},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """demonstrations: examples shown in front of a question. scope: show facts `always`, or
        only to questions near one (`retrieved`). threshold: least cosine of a question near a fact.
        facts: most facts shown at once. encoder: what compares questions, minilm, backbone, or auto
        (minilm if installed). corpus: training cases that demonstrations are made from.
        copy: the fact is shown twice, also as the demonstration next to the question ("New Fact:
        x y / Prompt: x y"), as EasyEdit does.
        """

        demonstrations: int = 4
        scope: Literal["always", "retrieved"] = "always"
        threshold: float = 0.7
        facts: int = 4
        encoder: Literal["auto", "minilm", "backbone"] = "auto"
        corpus: int = 1000
        copy: bool = False

    def idle(self) -> Mapping[str, str]:
        c, idle = self.config, dict(super().idle())
        if c.scope == "always":
            idle["threshold"] = "scope=always"
        if not c.demonstrations:
            idle["corpus"] = "demonstrations=0"
        return idle

    @property
    def uses_state(self) -> bool:
        return bool(self.config.demonstrations > 0)

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        """Demonstrations from training cases, and their vectors."""
        rng = generator(seed, self.name)
        encoder = choose(self.config.encoder)
        lines, vectors = corpus(backbone, cases, self.config.corpus, encoder, rng)
        if not lines:
            return None
        return State(self.name, {"lines": lines, "encoder": encoder}, {"vectors": vectors})

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        c = self.config
        encoder = choose(c.encoder)
        layout = ContextSettings(
            scope=c.scope, threshold=c.threshold, facts=c.facts, encoder=encoder
        )
        results = []
        for group, state in request:
            facts = [
                Fact(e.prompt.text, e.target.strip(), self._demonstrations(backbone, e, state))
                for e in group
            ]
            vectors = embed([f.question for f in facts], encoder, backbone)
            results.append(EditResult(Context(facts, layout, vectors), state))
        return results

    def _demonstrations(
        self, backbone: Backbone, edit: Edit, state: State | None
    ) -> tuple[str, ...]:
        """The k demonstrations most similar to the edit's copy line, the most similar first.

        With `copy` that line itself comes before them.
        """
        own = (copy_line(edit),) if self.config.copy else ()
        return own + self._similar(backbone, edit, state)

    def _similar(self, backbone: Backbone, edit: Edit, state: State | None) -> tuple[str, ...]:
        if state is None or not self.config.demonstrations:
            return ()
        meta, vectors = state.meta, state.tensors["vectors"]
        encoder, count = str(meta["encoder"]), self.config.demonstrations
        return similar(backbone, edit, meta["lines"], vectors, encoder, count)
