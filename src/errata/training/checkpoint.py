"""A training's checkpoint: one safetensors file, written whole or not at all.

Tensors: `module/...` (weights and buffers), `best/...` (those of the best step),
`optimiser/<i>/...`. The file's metadata holds the rest as JSON: progress, and the hash of all that
the training depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.core import files
from errata.core.errors import BadRun
from errata.core.formats.json_value import parse_json


@dataclass(frozen=True)
class Checkpoint:
    """`plan` is the hash of everything that the training depends on; `progress` is JSON-ready."""

    plan: str
    progress: Mapping[str, Any]
    module: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimiser: Mapping[str, Any]


def save(path: Path, point: Checkpoint) -> None:
    tensors = {f"module/{k}": v for k, v in point.module.items()}
    tensors |= {f"best/{k}": v for k, v in point.best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, state in point.optimiser["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    head = {
        "plan": point.plan,
        "progress": dict(point.progress),
        "optimiser": {"state": plain, "param_groups": point.optimiser["param_groups"]},
    }
    stored = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    blob = to_safetensors(stored, metadata={"head": files.dumps(head)})
    files.write_bytes(path, blob)


def load(path: Path | None) -> Checkpoint | None:
    """The checkpoint, None where there is none. Raises BadRun for a damaged one."""
    if path is None or not path.exists():
        return None
    try:
        return _read(path)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError):
        raise BadRun(
            f"{path} cannot be read: it is damaged or cut off. Delete it and run the same command "
            "again: the training starts anew."
        ) from None


def _read(path: Path) -> Checkpoint:
    with safe_open(str(path), "pt") as f:
        head = parse_json(f.metadata()["head"])
        tensors = {k: f.get_tensor(k).clone() for k in f.keys()}
    state: dict[int, dict[str, Any]] = {
        int(k): dict(v) for k, v in head["optimiser"]["state"].items()
    }
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}}
    for key, tensor in tensors.items():
        where, name = key.split("/", 1)
        if where == "optimiser":
            index, name = name.split("/", 1)
            state.setdefault(int(index), {})[name] = tensor
        else:
            parts[where][name] = tensor
    optimiser = {"state": state, "param_groups": head["optimiser"]["param_groups"]}
    return Checkpoint(
        str(head["plan"]), dict(head["progress"]), parts["module"], parts["best"], optimiser
    )


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Loads a saved state into a new optimiser; lists, which JSON made of tuples, become tuples."""
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()}
        for g in saved["param_groups"]
    ]
    optimiser.load_state_dict({"state": dict(saved["state"]), "param_groups": groups})
