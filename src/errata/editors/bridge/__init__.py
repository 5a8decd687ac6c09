"""Bridge: a value that is searched for what it does to the picture, written as MEMIT writes.

Ours. The UniKE study of unified models finds that edits of text seldom reach the pictures, and
leaves open an editor whose change survives the way. Locate-then-edit editors search the value of a
fact by the words that follow; nothing in that loss concerns what the generator of pictures is
given. Here the value, at the subject's last token, is searched so that what the generator is given
of image prompts that do not state the new fact becomes what it is given of prompts that state it
(`finding.bridging`), alone (`text_weight=0`) or together with the loss of the target's words. Three
ways to compare: the projected states themselves, token by token or in the mean, and the picture
that the generator expects of them. The value is then spread and written as in MEMIT: the moment of
other texts' keys is what keeps the conditioning of other prompts where it was.

What it needs is made of the edit alone: `prompts` are image prompts about the subject, `oracles`
the same with the fact, stated by the edit's own prompt and target where a template says
`{statement}`. A test of it must draw from other wordings and scenes than these: the preset
`micro-umm` searches with two trained wordings at stage 3 of unike_umm:microworld, which draws the
held-out wordings, and whose stages 1, 2 and 4 are other scenes.
Control: `random` keeps the length of the vector that was found and takes a random direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from errata.algorithms.locate_then_edit.multi_layer import KeyCovariance
from errata.algorithms.locate_then_edit.value_search import FoundValues
from errata.core.model.backbone import Backbone
from errata.core.model.generation import image_generator
from errata.core.types import Edit
from errata.editors.bridge import search
from errata.training.optimise import generator


class Bridge(KeyCovariance):
    """Moves what the generator is given of image prompts, by values at the subject."""

    name = "bridge"
    requires = frozenset({"draw"})
    modalities = frozenset({"text"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # One scene and two wordings: pictures of other scenes and wordings are left for tests.
        "micro-umm": {
            "layers": (1, 2, 3), "mom2_weight": 500.0,
            "prompts": ("a photo of a {subject} beside a lamp",
                        "a painting of a {subject} beside a stone"),
            "oracles": ("{target} {subject}",),
        },
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(KeyCovariance.Config):
        """prompts, oracles: templates of {subject}, {target}, {statement} (the edit's prompt and
        target) and, in oracles, {prompt} (the one without the fact); an oracle without {prompt}
        stands in place of the subject. match: what is compared, the `tokens` that both prompts
        share from the subject on, the `mean` over all, or the expected `picture`. text_weight:
        what the loss of the target's words counts beside the way that is left, which begins at 1.
        random: the control.
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

    @property
    def bridge(self) -> search.BridgeSettings:
        c = self.config
        return search.BridgeSettings(
            prompts=c.prompts, oracles=c.oracles, match=c.match, text_weight=c.text_weight,
            random=c.random,
        )  # fmt: skip

    def searched(
        self,
        backbone: Backbone,
        edits: Sequence[tuple[int, Edit]],
        beginnings: Sequence[str],
        *,
        seed: int,
    ) -> FoundValues:
        text = self.values(backbone, self.layers(backbone)[-1])
        rngs = [generator(seed, f"bridge/{e.prompt.text}/{e.target}") for _, e in edits]
        return search.search(image_generator(backbone), edits, beginnings, text, self.bridge, rngs)
