"""Settings with which every editor makes an edit of a tiny model within a second."""

from __future__ import annotations

from typing import Any

# Few steps: where a gradient is rounding noise, Adam still moves the weight by a whole step, in a
# random direction. So edits found in one batch and alone differ after some steps (ft_v: 2e-6 after
# 3 steps, 7e-4 after 4), and the more the larger the step: unike with lr=auto goes up to 3 times
# the weights' size and differs by 8e-2 after 6 steps.
ADAPTER = {"held_out": 0, "mid": 16, "heads": 4, "steps": 6, "batch_size": 2, "lr": 1e-2}
SMALL_SETTINGS: dict[str, dict[str, Any]] = {
    "ft_l": {"steps": 8, "lr": 1e-2},
    "ft_v": {"steps": 3, "lr": 1e-2},
    "lora": {"steps": 8, "lr": 1e-2},
    "tpatcher": {"steps": 8, "memory": 200, "prompts": 20, "memory_weight": 0.1},
    "witness": {"questions": 2, "pictures": 2, "pool": 4, "cases": 8},
    "ike": {"encoder": "backbone"},
    "unike": {
        "steps": 3,
        "top": 3,
        "epochs": 2,
        "width": 16,
        "memory": 50,
        "encoder": "backbone",
        "layers": (-2, -1),
        "latent_layers": (-2, -1),
        "neurons": 4,
        "stop_loss": 1e-3,
    },
    "mend": {"steps": 3, "batch_size": 2, "layers": (1, 2), "rank": 8, "edit_lr": -1e-2},
    "ke": {"steps": 3, "batch_size": 2, "layers": (1, 2), "hidden": 8, "condition": 8, "width": 8},
    "serac": {
        "steps": 4,
        "batch_size": 2,
        "held_out": 0,
        "width": 16,
        "slots": 2,
        "warmup": 0,
        "threshold": 0.2,  # low: after four steps the scope scores hardly differ
    },
    "lte": {
        "steps": 3,
        "batch_size": 2,
        "held_out": 0,
        "rank": 2,
        "warmup": 0,
        "encoder": "backbone",
    },
    "rome": {"layers": (1,), "steps": 4, "lr": 0.5, "ridge": 0.5},
    "memit": {"layers": (1, 2), "steps": 4, "lr": 0.5, "ridge": 0.5, "mom2_weight": 10.0},
    "bridge": {
        "layers": (0, 1),
        "steps": 4,
        "lr": 0.5,
        "ridge": 0.5,
        "mom2_weight": 10.0,
        "prompts": ("a shape of the {subject} now",),
    },
    "pmet": {"layers": (1, 2), "steps": 4, "lr": 0.5, "ridge": 0.5, "mom2_weight": 10.0},
    "alphaedit": {
        "layers": (1, 2),
        "steps": 4,
        "lr": 0.5,
        "threshold": "relative",
        "L2": 0.1,
        "nullspace_threshold": 0.5,
    },
    "dualedit": {"text_layer": 1, "visual_layer": 2, **ADAPTER, "gate_cases": 4},
    "visedit": {"layer": 1, **ADAPTER, "tokens": 2, "gate_cases": 4},
}
