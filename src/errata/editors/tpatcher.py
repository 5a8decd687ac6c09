"""T-Patcher: a few new neurons in the last FFN, trained on one edit, kept silent elsewhere.

Source: Huang et al., ICLR 2023, and its code at 93ff458: keys start at q / |q|^2 of the positions
to be mended (so that each new neuron fires with exactly 1 there), an activation loss keeps them
firing, a memory loss over stored FFN inputs keeps them silent on everything else.

Losses (preset `paper` = the original's weights): l_e + act * l_a + memory * l_m with
l_a = mean of the 5 largest exp(-u_i) at the neurons' own positions,
l_m = mean of the top-k exp(u - gamma) + mean of the top-k exp(u - u_i + beta), u on memory states.

Differences: values start at zero, not N(0, 1) * 10, which wrecks a model before the first step (an
all-zero start, as in LiveEdit's port, has no gradient at all); the number of neurons is fixed,
neuron j belongs to target position j modulo the target's length; for a gated FFN K_up starts at
zero with bias 1, so that the gate's key alone decides; several layers are allowed; the edit loss
stays on the edit (LiveEdit's port overwrites it with a Wikipedia paragraph from the second step
on). The memory comes from training prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from errata.algorithms.neuron_search import NeuronEditor


class TPatcher(NeuronEditor):
    """New FFN neurons with activation and memory losses."""

    name = "tpatcher"
    state_settings = ("layers", "memory", "prompts")
    without_state = "Without one: --set memory_weight=0, which spares nothing around the edit."
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "layers": (-2,),
            "neurons": 10,
            "lr": 3e-3,
            "steps": 200,
            "act_weight": 1.0,
            "memory_weight": 10.0,
            "value_scale": 10.0,
        },
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
