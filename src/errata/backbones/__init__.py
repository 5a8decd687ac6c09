"""Backbones: one file per model family, with the module paths of its sites."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core import registry
from errata.core.errors import BadBackbone, BadSpec

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.model.outline import ModelOutline

#: how a prompt is written
STYLES = ("raw", "easyedit", "chat")


def load(
    name: str | os.PathLike[str],
    *,
    dtype: Any = "auto",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    style: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    drawing: Mapping[str, Any] | None = None,
    memory: int | str | None = None,
) -> Backbone:
    """A bundled model, a folder or a hub id; the family is found from its config.

    gguf_file: a file in GGUF in that folder, whose weights are dequantised; the path of such a file
    may be given as the name. drawing: settings of its pictures, for a model that draws (steps,
    guidance, size, negative, and what its own call takes). dtype: `auto`, a name or a torch.dtype.
    style: how a prompt is written: `raw`, `easyedit` or `chat`; None: with the model's chat
    template if it has one, else raw. memory: most bytes of a batch beyond the weights, a number or
    a text such as `8GB`; larger batches are cut; None: half of what is free. Raises BadSpec for a
    style that does not exist, or a dtype or device that this machine does not have, BadBackbone for
    a model that does not exist, that no family accepts, or that cannot be loaded.
    """
    from errata.core.hooks.modes import ordinary
    from errata.core.model.budget import parse_bytes
    from errata.core.model.slow_dtype import warn_of_slow_dtype

    name = _checked_name(name)
    check_style(style)
    most = None if memory is None else parse_bytes(memory)
    dtype = str(dtype).removeprefix("torch.")
    _check_device(dtype, device)
    classes = _families()
    family = next((c for c in classes.values() if name in c.bundled), None)
    name, gguf_file = _gguf_of(name, gguf_file, family)
    more: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    if gguf_file is not None:
        from errata.backbones._language import gguf

        gguf.check(name, gguf_file)
        family = _family(gguf_file, gguf.config_of(name, gguf_file, revision))
        if "gguf_file" not in inspect.signature(family.load).parameters:
            raise BadBackbone(
                f"'{gguf_file}' is a model of the family {family.__name__}, which errata does not "
                "read from GGUF. Give the folder or hub id that the file was made from."
            )
    elif family is None:
        path = Path(name)
        if path.exists():
            from errata.backbones import _folders

            _folders.check(path)
        family = _family(name, _config(name, revision, trust_remote_code))
    more |= _drawing_of(drawing, name, family.load)
    with ordinary():  # weights that are made in inference mode can never be searched through
        backbone: Backbone = family.load(
            name,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **({} if style is None else {"style": style}),
            **more,
        )
    warn_of_slow_dtype(backbone)
    backbone.memory = most
    return backbone


def _drawing_of(drawing: Any, name: str, make: Any) -> dict[str, Any]:
    """The keyword for settings of a drawing, if some are given. Raises BadSpec."""
    if drawing and "drawing" not in inspect.signature(make).parameters:
        raise BadSpec(
            f"'{name}' has no drawing settings ({', '.join(drawing)}): it draws as it was "
            "trained, or not at all. Leave them out."
        )
    return {"drawing": drawing} if drawing else {}


def _gguf_of(name: str, file: Any, family: Any) -> tuple[str, str | None]:
    """(folder or hub id, file in GGUF or None). Raises BadSpec."""
    if file is not None and not isinstance(file, (str, os.PathLike)):
        raise BadSpec(f"gguf_file is the name of a file, not {_kind(file)}.")
    if file is not None and family is not None:
        raise BadSpec(f"the bundled model '{name}' has no GGUF files. Leave gguf_file out.")
    file = None if file is None else os.fspath(file)
    if file is None and not name.lower().endswith(".gguf"):
        return name, None
    from errata.backbones._language import gguf

    return gguf.split(name, file)


def wrap(
    model: Any,
    processor: Any = None,
    *,
    name: str = "",
    style: str | None = None,
    drawing: Mapping[str, Any] | None = None,
) -> Backbone:
    """A backbone around a model in memory, with the fingerprint that `load` would give.

    model: of transformers, also inside a PeftModel, compiled, or offloaded by accelerate. It is not
    copied. processor: the model's processor (`AutoProcessor.from_pretrained`); for a model without
    images its tokenizer. A pipeline of diffusers is given alone. drawing: as in `load`. name: for
    messages and presets; default: where the model came from.
    style: as in `load`. Raises BadSpec for a style that does not exist, BadBackbone for a model
    that no family accepts or a processor that does not fit it.
    """
    from torch import nn

    check_style(style)
    if name is not None and not isinstance(name, (str, os.PathLike)):
        raise BadSpec(f"the name of a model is a text, not {_kind(name)}.")
    name = os.fspath(name or "")
    config: Any = getattr(model, "config", None)
    if hasattr(model, "components") and not isinstance(model, nn.Module):
        family = _family(name or type(model).__name__, {"_diffusers_version": "", **config})
        pipeline: Backbone = family.wrap(model, None, name=name, style=style, drawing=drawing)
        return pipeline
    if not isinstance(model, nn.Module) or not hasattr(config, "to_dict"):
        raise BadBackbone(
            f"errata.wrap takes a model of transformers, not {_kind(model)}. Load one with "
            "from_pretrained, or give a folder or hub id to errata.load."
        )
    if processor is None or isinstance(processor, (str, bytes, os.PathLike)):
        raise BadBackbone(
            f"errata.wrap takes the model's processor, not {_kind(processor)}. Load it: "
            "AutoProcessor.from_pretrained(...), or for a model without images AutoTokenizer."
        )
    source = str(getattr(config, "_name_or_path", "") or "")
    family = _family(name or source or type(model).__name__, config.to_dict())
    more = _drawing_of(drawing, name or source, family.wrap)
    backbone: Backbone = family.wrap(model, processor, name=name, style=style, **more)
    return backbone


def check_style(style: str | None, what: str = "style") -> None:
    """Raises BadSpec for a style that does not exist; None is the model's own."""
    if style is not None and style not in STYLES:
        close = difflib.get_close_matches(str(style), STYLES, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise BadSpec(f"unknown {what} '{style}'.{hint} Known: {', '.join(STYLES)}.")


def _kind(value: Any) -> str:
    return f"'{value}'"[:100] if isinstance(value, str) else f"a {type(value).__name__}"


def _checked_name(name: Any) -> str:
    if not isinstance(name, (str, os.PathLike)):
        hint = " errata.wrap(model, processor) takes one that is in memory." * hasattr(
            name, "config"
        )
        raise BadBackbone(
            f"a model is named by a bundled name, a folder or a hub id, not {_kind(name)}.{hint}"
        )
    return os.fspath(name)


def _family(name: str, config: dict[str, Any]) -> Any:
    """The class that handles a model with this config. Raises BadBackbone."""
    classes = _families()
    family = next((c for c in classes.values() if c.accepts(config)), None)
    if family is None:
        raise BadBackbone(
            f"'{name}' is of type '{config.get('model_type', 'unknown')}', which no backbone "
            f"handles. Known families: {', '.join(classes)}; docs/add-a-backbone.md says how "
            "to add one."
        )
    return family


def _families() -> dict[str, Any]:
    """Classes by name, the more specific ones first.

    Those of third parties come before errata's, and a class before the one that it is built on.
    """
    classes = registry.usable("backbones")
    ours = {name: cls.__module__.startswith("errata.") for name, cls in classes.items()}
    return dict(sorted(classes.items(), key=lambda c: (ours[c[0]], -len(c[1].__mro__))))


def _config(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import PretrainedConfig

    from errata.backbones import _folders

    pipeline = Path(name) / _folders.PIPELINE
    if pipeline.is_file():
        return {"_diffusers_version": "", **_folders.read_object(pipeline)}
    bundled = sorted(b for c in _families().values() for b in c.bundled)
    close = difflib.get_close_matches(name, bundled, n=1)
    if close and not Path(name).exists():
        raise BadBackbone(f"there is no model '{name}'. Did you mean the bundled '{close[0]}'?")
    try:
        config, _ = PretrainedConfig.get_config_dict(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as e:  # no such folder, hub id or network, or a name that none can have
        if index := _folders.pipeline_of(name, revision):
            return index
        raise BadBackbone(
            f"there is no model '{name[:200]}'. Give a bundled name ({', '.join(bundled)}), a "
            "folder with config.json, or a hub id (without a network: one downloaded before)."
        ) from e
    if not isinstance(config, dict) or not config:
        raise BadBackbone(f"'{name}' has no config.json. Give the folder or hub id of a model.")
    return dict(config)


def _check_device(dtype: str, device: str | None) -> None:
    import torch

    number = getattr(torch, dtype, None)
    if dtype != "auto" and not (isinstance(number, torch.dtype) and number.is_floating_point):
        raise BadSpec(f"unknown dtype '{dtype}'. Known: auto, float32, bfloat16, float16.")
    try:
        place = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise BadSpec(f"unknown device '{device}'. Known: cpu, cuda, cuda:1, mps.") from None
    try:
        torch.zeros(1, device=place).cpu()
    except Exception:  # whatever the library of a device says that is not there
        raise BadSpec(
            f"this machine has no usable device '{device}'. Leave --device out, or cpu."
        ) from None


def outline(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelOutline:
    """Modules, sites, files and fingerprint of a model, without its weights.

    A family that has no way to make an outline loads the weights. Raises BadBackbone as `load`.
    """
    from errata.backbones import _folders

    name = _checked_name(name)
    family: Any = next((c for c in _families().values() if name in c.bundled), None)
    if _gguf_of(name, None, family)[1] is not None:
        return load(name).outlined()
    if family is None:
        if Path(name).exists():
            _folders.check(Path(name))
        family = _family(name, _config(name, revision, trust_remote_code))
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    made: ModelOutline | None = family.outline(name, **options)
    return made or load(name, **options).outlined()
