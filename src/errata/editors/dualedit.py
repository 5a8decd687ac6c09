"""DualEdit: a textual and a visual adapter, each at its own layer, behind one gate.

Source: Shi et al. 2025 (DualEdit), section 3.2 and appendices A and D, and its code at 00ab52f (a
fork of VisEdit). Behind block `text_layer` the question's text tokens, behind block `visual_layer`
the image tokens are changed by cross-attention to the hidden states that the edit (prompt and
target) has there; the networks are trained once on l = rel + T-gen + M-gen + locality KL and
frozen. An edit is one forward of its prompt and target. Preset `paper`: layers 16 and 19, width
1024, 8 heads, Adam 1e-4, batches of 4, 50,000 iterations, the checkpoint with the smallest loss.

Differences:
- the gate. The published one compares the last tokens of prompt AND answer: of the edit with its
  target, and of a question with its gold answer, which is there only because it is scored. It tells
  answers apart, not questions, and would not open in generation. Here (`prompt`) both sides are
  read at the last prompt token of the unedited model, and the threshold is tuned on training cases,
  near questions among them (preset `micro-vlm-far`: on far ones only).
  `leaky` is the published gate, to measure how much of the published locality it explains (presets
  `leaky-blip2-opt` and `leaky-llava-1.5`, with the thresholds of the paper, 0.8 and 0.6); `none`
  is always open; `errata list gates` lists all. The published gate is read at the site of the lower
  adapter; with `gate_layer` it is read further up, where the last token has seen the image. Then
  each prompt first runs up to there without the adapters.
- the KL of text-only locality (appendix A) is trained; the code skips it.
- the code's cross-attention is used (residual, layer norms, width 1024, heads), not the paper's
  formula (no residual, full rank); its last linear map starts at zero.
- `marks`: learnt embeddings on the target tokens of the edit, so that the network need not find out
  by content which tokens are the answer, and in which order (8 in `micro-vlm`, 0 in `paper`).
- losses are means over examples of means over tokens; the code's are means over all tokens of a
  role: `loss_mean=tokens`.
- a patch can hold several edits; the gate chooses one. The code holds one.
- a layer set to null leaves that modality unchanged (the paper's single-modality rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from errata.algorithms.gated_adapter import AdapterEditor, site_behind
from errata.core.errors import BadEdit, BadSpec
from errata.core.model.backbone import Backbone
from errata.core.types import Edit
from errata.networks.adapter import AdapterSite

#: BLIP2-OPT and LLaVA-1.5
_PAPER: Mapping[str, Any] = {
    "text_layer": 16,
    "visual_layer": 19,
    "mid": 1024,
    "heads": 8,
    "lr": 1e-4,
    "batch_size": 4,
    "steps": 50_000,
    "eval_steps": 1000,
    "save_steps": 1000,
    "patience": 50,
    "max_grad_norm": 0.0,
    "eos": False,
}


_MICRO: Mapping[str, Any] = {
    "text_layer": 1,
    "visual_layer": 2,
    "gate_layer": 5,
    "mid": 256,
    "heads": 8,
    "marks": 8,
    "lr": 3e-3,
    "warmup": 30,
    "schedule": "cosine",
    "batch_size": 16,
    "steps": 1200,
    "eval_steps": 50,
    "patience": 20,
    "held_out": 48,
    "locality_examples": 1,
    "locality_pool": 3,
    "locality_kinds": ("t_locality", "m_locality"),
    "locality_weight": 1.0,
}


class DualEdit(AdapterEditor):
    """Cross-attention adapters on text and image tokens, gated."""

    name = "dualedit"
    state_settings = ("text_layer", "visual_layer", "mid", "heads", "marks", "eos", "tuning_kinds")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "leaky-blip2-opt": {**_PAPER, "gate": "leaky", "threshold": 0.8},
        "leaky-llava-1.5": {**_PAPER, "gate": "leaky", "threshold": 0.6},
        "micro-vlm": _MICRO,
        "micro-vlm-far": {**_MICRO, "tuning_kinds": ("t_locality", "m_locality")},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(AdapterEditor.Config):
        """text_layer: block behind which text tokens are changed, negative from the end, null for
        none. visual_layer: block behind which image tokens are changed, negative from the end, null
        for none. The last block's output is too late for either.
        """

        text_layer: int | None = 16
        visual_layer: int | None = 19

    def places(self, backbone: Backbone) -> list[AdapterSite]:
        c = self.config
        layers = [("text", c.text_layer), ("visual", c.visual_layer)]
        places = [AdapterSite(site_behind(backbone, at), to) for to, at in layers if at is not None]  # type: ignore[arg-type]
        if not places:
            raise BadSpec(
                "dualedit has neither text_layer nor visual_layer. Give at least one a block."
            )
        return places

    def check(self, edit: Edit) -> None:
        if self.config.text_layer is None and not edit.prompt.images:
            raise BadEdit(
                f"edit '{edit.id or edit.prompt.text[:60]}' has no image, and with text_layer=null "
                "dualedit changes image tokens only. Give --image FILE, or set a text_layer."
            )
