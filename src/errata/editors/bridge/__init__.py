"""Bridge: MEMIT with values searched for their effect on the picture.

Ours. The UniKE study of unified models finds that edits of text seldom reach the pictures, and
leaves open an editor whose change does. Locate-then-edit editors search the value of a fact by the
tokens that follow; nothing in that loss concerns the image generator. Here the value, at the
subject's last token, is searched so that the conditioning of image prompts without the new fact
becomes the conditioning of image prompts that state it (`search`), alone (`text_weight=0`) or
together with the loss on the target's tokens. Three ways to compare: the conditioning token by
token, its mean, or the picture that the generator predicts from it. The value is then spread and
written as in MEMIT: the second moment of other texts' keys keeps the conditioning of other prompts.

The image prompts are made from the edit alone: `prompts` are about the subject, `oracles` are the
same with the fact, as the edit's prompt and target where a template says `{statement}`. A test must
use other wordings and scenes: the preset `micro-umm` searches with two trained wordings at stage 3
of unike_umm:microworld, which draws the held-out wordings, and whose stages 1, 2 and 4 are other
scenes. Control: `random` keeps the length of the found vector and takes a random direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from errata.algorithms.locate_then_edit.multi_layer import CovarianceUpdate
from errata.algorithms.locate_then_edit.value_search import ValueResult
from errata.core.model.backbone import Backbone
from errata.core.model.generation import image_generator
from errata.core.types import Edit
from errata.editors.bridge import search
from errata.training.optimise import generator

#: One scene and two wordings: pictures of other scenes and wordings are left for tests.
_MICRO: Mapping[str, Any] = {
    "layers": (1, 2, 3), "lr": 0.5, "mom2_weight": 500.0,
    "prompts": ("a photo of a {subject} beside a lamp",
                "a painting of a {subject} beside a stone"),
    "oracles": ("{target} {subject}",),
}  # fmt: skip


class Bridge(CovarianceUpdate):
    """Moves the conditioning of image prompts, by values at the subject."""

    name = "bridge"
    requires = frozenset({"draw"})
    modalities = frozenset({"text"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-umm": _MICRO,
        # behind a scope nothing else has to be spared: the whole value is searched and written
        "micro-umm-scoped": {
            **_MICRO,
            "mom2_weight": 0.5,
            "kl_factor": 0.0,
            "steps": 100,
            "text_weight": 0.5,
        },
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(CovarianceUpdate.Config):
        """prompts: image prompts without the fact, templates of {subject}, {target} and
        {statement}, the edit's prompt and target. oracles: the same prompts with the fact, which
        may contain {prompt}; one without it stands in place of the subject. match: what is
        compared, the `tokens` that both prompts share from the subject on, the `mean` over all, or
        the predicted `picture`. text_weight: weight of the target-token loss beside the remaining
        distance (1 at the start). random: a control, the value goes in a random direction of the
        same length.
        """

        token: Literal["subject"] = "subject"
        prompts: tuple[str, ...] = ("a photo of {subject}", "a drawing of {subject}")
        oracles: tuple[str, ...] = ("{statement}. {prompt}",)
        match: Literal["tokens", "mean", "picture"] = "picture"
        text_weight: float = 1.0
        random: bool = False

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        search.check_templates(self.name, self.bridge)

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if not self.config.text_weight:
            idle |= dict.fromkeys(("weight_decay", "decay", "kl_factor"), "text_weight=0")
        return idle

    @property
    def bridge(self) -> search.BridgeSettings:
        c = self.config
        return search.BridgeSettings(
            prompts=c.prompts, oracles=c.oracles, match=c.match, text_weight=c.text_weight,
            random=c.random,
        )  # fmt: skip

    def search_values(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        templates: Sequence[str],
        layer: int,
        *,
        seed: int,
    ) -> ValueResult:
        text = self.value_settings(backbone, layer)
        rngs = [generator(seed, f"bridge/{e.prompt.text}/{e.target}") for _, e in edits]
        return search.search(image_generator(backbone), edits, templates, text, self.bridge, rngs)
