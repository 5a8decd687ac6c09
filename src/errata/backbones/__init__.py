"""Backbones: one file per model family, with the module paths of its sites."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from errata.core import registry
from errata.core.errors import BadBackbone, BadSpec

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
from errata.core.types import brief


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    style: Literal["raw", "easyedit", "chat"] = "raw",
    trust_remote_code: bool = False,
) -> Backbone:
    """A bundled model, a folder or a hub id; the family is found from its config.

    Raises BadSpec for a dtype or device that this machine does not have, BadBackbone for a model
    that does not exist, that no family accepts, or that cannot be loaded.
    """
    from errata.core.hooks.modes import ordinary

    if not isinstance(name, (str, os.PathLike)):
        raise BadBackbone(f"a model is named by a text or a path, not by {brief(name)}.")
    name = os.fspath(name)
    _check_device(dtype, device)
    classes = _families()
    family = next((c for c in classes.values() if name in c.bundled), None)
    if family is None:
        config = _config(name, revision, trust_remote_code)
        family = next((c for c in classes.values() if c.accepts(config)), None)
        if family is None:
            raise BadBackbone(
                f"'{name}' is of type '{config.get('model_type', 'unknown')}', which no backbone "
                f"handles. Known families: {', '.join(classes)}; docs/add-a-backbone.md says how "
                "to add one."
            )
    with ordinary():  # weights that are made in inference mode can never be searched through
        backbone: Backbone = family.load(
            name,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            style=style,
            trust_remote_code=trust_remote_code,
        )
    return backbone


def _families() -> dict[str, Any]:
    """Classes by name; those of third parties first, since they are more specific."""
    classes = {n: registry.load("backbones", n) for n in registry.names("backbones")}
    return dict(sorted(classes.items(), key=lambda c: c[1].__module__.startswith("errata.")))


def _config(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import PretrainedConfig

    bundled = sorted(b for c in _families().values() for b in c.bundled)
    close = difflib.get_close_matches(name, bundled, n=1)
    if close and not Path(name).exists():
        raise BadBackbone(f"there is no model '{name}'. Did you mean the bundled '{close[0]}'?")
    try:
        config, _ = PretrainedConfig.get_config_dict(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0].rstrip(".")
        raise BadBackbone(
            f"there is no model '{name}': {reason}. Give a bundled name ({', '.join(bundled)}), a "
            "folder with config.json, or a hub id (without a network: one downloaded before)."
        ) from None
    if not config:
        raise BadBackbone(f"'{name}' has no config.json. Give the folder or hub id of a model.")
    return dict(config)


def _check_device(dtype: str, device: str | None) -> None:
    import torch

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise BadSpec(f"unknown dtype '{dtype}'. Known: auto, float32, bfloat16, float16.")
    try:
        kind = torch.device(device).type if device is not None else "cpu"
    except RuntimeError:
        raise BadSpec(f"unknown device '{device}'. Known: cpu, cuda, cuda:1, mps.") from None
    absent = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise BadSpec(f"this machine has no usable device '{device}'. Leave --device out, or cpu.")
