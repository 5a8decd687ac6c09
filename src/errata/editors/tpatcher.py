"""T-Patcher: a few new neurons in the last FFN, trained on one edit, kept silent elsewhere.

Source: Huang et al., ICLR 2023, and its code at 93ff458. Keys, losses and search are described in
`errata.algorithms.neuron_search`; preset `paper` has the original's weights of the losses.

Differences:
- values start at zero. The original's N(0, 1) * 10 destroys a model before the first step; an
  all-zero start, as in LiveEdit's port, has no gradient at all;
- the number of neurons is fixed; neuron j belongs to target position j modulo the target's length;
- for a gated FFN, K_up starts at zero with bias 1, so that the gate's key alone decides;
- several layers are allowed;
- the edit loss stays on the edit (LiveEdit's port overwrites it with a Wikipedia paragraph from the
  second step on);
- the memory comes from training prompts, near questions among them; with preset `micro-vlm-far`
  it holds far questions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from errata.algorithms.neuron_search import NeuronEditor

_MICRO: Mapping[str, Any] = {
    "layers": (-2,),
    "neurons": 10,
    "lr": 3e-3,
    "steps": 200,
    "act_weight": 1.0,
    "memory_weight": 10.0,
    "value_scale": 10.0,
}


class TPatcher(NeuronEditor):
    """New FFN neurons with activation and memory losses."""

    name = "tpatcher"
    state_settings = ("layers", "memory", "prompts", "memory_kinds")
    without_state = (
        "Without one: --set memory_weight=0, which does not keep the neurons silent elsewhere."
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": _MICRO,
        "micro-vlm-far": {**_MICRO, "memory_kinds": ("t_locality", "m_locality")},
        "paper": {
            "layers": (-1,),
            "neurons": 5,
            "act_weight": 1.0,
            "memory_weight": 10.0,
            "lr": 1e-2,
            "max_grad_norm": 5.0,
        },
        "vlm_port": {
            "layers": (-1,),
            "neurons": 1,
            "act_weight": 1e-4,
            "memory_weight": 1e-4,
            "lr": 1e-2,
            "steps": 25,
            "eos": False,
        },
    }
