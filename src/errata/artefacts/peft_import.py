"""Reads a LoRA adapter in PEFT's format as a patch.

y += s B A x with s = alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA, becomes a low-rank
change dW = (s B) A of the site that the module is. Which modules have one is read from the
tensors, not from `target_modules`. peft itself is not needed. Checked with peft 0.21.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from errata.artefacts.linear import LinearModule, linear_modules
from errata.backbones._weights import KeyMap
from errata.core.errors import BadBackbone, BadPatch
from errata.core.files import FilePath, is_dir, read_bytes, read_json, shortened, versions
from errata.core.formats.validation import path_of
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.patch import Header
from errata.io.weight_files import load_bin
from errata.patches.delta import Delta

CONFIG = "adapter_config.json"
#: settings that are read, and settings that change no output of a trained adapter
_READ = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    *("modules_to_save", "base_model_name_or_path", "init_lora_weights", "use_dora"),
)
_SILENT = (
    *("task_type", "inference_mode", "lora_dropout", "target_modules", "exclude_modules"),
    *("fan_in_fan_out", "layers_to_transform", "layers_pattern", "auto_mapping", "revision"),
    *("peft_version", "megatron_config", "megatron_core", "eva_config", "loftq_config"),
    *("qalora_group_size", "ensure_weight_tying", "runtime_config", "corda_config"),
    *("lora_ga_config", "velora_config"),
)
#: ways to start training that leave the base model's weights as they are
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight")


def import_peft(adapter: FilePath, backbone: Backbone, *, any_base: bool = False) -> Delta:
    """The adapter in a folder as a patch of `backbone`, which answers as PEFT's model does.

    any_base: also an adapter whose config names another base model, such as an older copy of this
    one. Raises BadPatch for what is no plain LoRA of linear modules that are sites.
    """
    check_backbone(backbone)
    folder = path_of(adapter, "the folder of an adapter")
    config = _config(folder)
    _check_config(config, folder)
    _check_base(config, folder, backbone, any_base)
    tensors, sha256 = _tensors(folder)
    pairs = _pairs(tensors, folder)
    modules = {path: m for m in linear_modules(backbone.outlined()).values() for path in m.paths}
    key_map = KeyMap(backbone.model)
    parts: dict[str, dict[str, Tensor]] = {}
    for path, (a, b) in pairs.items():
        module = _module(path, modules, key_map, folder, backbone)
        _check_shapes(path, module, a, b, folder, backbone)
        scale = _scale(config, path, a.shape[0], folder)
        if module.site in parts:
            raise BadPatch(f"{folder} holds two changes of {module.path}. It is damaged.")
        parts[module.site] = {"A": a.float(), "B": b.float() * scale}
    patch = Delta(parts).requires_grad_(False)
    return backbone.place(patch.with_header(_header(config, folder, sha256, backbone), []))


def _config(folder: Path) -> dict[str, Any]:
    if not is_dir(folder):
        raise BadPatch(
            f"{folder} is no folder. Give the folder of an adapter, with {CONFIG}; one on a hub "
            "is downloaded first (hf download NAME)."
        )
    if not (folder / CONFIG).is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
        hint = f" It holds adapters ({', '.join(inside[:3])}): name one." if inside else ""
        raise BadPatch(f"{folder} is no adapter: it has no {CONFIG}.{hint}")
    config = read_json(folder / CONFIG, BadPatch)
    if not isinstance(config, dict):
        raise BadPatch(f"{folder / CONFIG} is no object. Restore it from a copy.")
    return config


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raises BadPatch for an adapter that does more, or something else, than a LoRA."""

    def refuse(what: str, advice: str) -> None:
        raise BadPatch(f"{folder} {what}, which is no plain change of weights. {advice}")

    merge = "Merge it into the model with peft (merge_and_unload), and save that model."
    if config.get("peft_type") != "LORA":
        refuse(f"is an adapter of type '{shortened(config.get('peft_type'))}', not LORA", merge)
    if config.get("use_dora"):
        refuse("uses DoRA, whose change depends on the norm of the weights", merge)
    if config.get("modules_to_save"):
        names = shortened(config["modules_to_save"])
        refuse(f"holds whole modules beside its LoRA (modules_to_save: {names})", merge)
    if (config.get("bias") or "none") != "none":
        refuse(f"also changes biases (bias: {shortened(config['bias'])})", merge)
    start = config.get("init_lora_weights", True)
    if not any(start is s or (isinstance(s, str) and start == s) for s in _STARTS):
        refuse(
            f"was started by '{shortened(start)}', which changes the base model too",
            "Convert it with peft: save_pretrained(..., path_initial_model_for_weight_conversion).",
        )
    for key, value in config.items():
        if value and key not in _READ and key not in _SILENT:
            refuse(f"uses {shortened(key)} ({shortened(value)})", merge)


def _check_base(
    config: Mapping[str, Any], folder: Path, backbone: Backbone, any_base: bool
) -> None:
    base = str(config.get("base_model_name_or_path") or "")
    path: Any = getattr(getattr(backbone.model, "config", None), "_name_or_path", "")
    known = {backbone.name, str(path or "")} - {""}
    same = base in known or any(
        is_dir(Path(base)) and is_dir(Path(k)) and Path(base).samefile(k) for k in known
    )
    if base and not same and not any_base:
        raise BadPatch(
            f"{folder} is an adapter of {shortened(base, 120)}, not of {backbone.name}. Name that "
            "model; if this is a copy of it, give --any-base."
        )


def _tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, sha256 of their file). Raises BadPatch."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        data = read_bytes(file, BadPatch)
        try:
            return from_safetensors(data), hashlib.sha256(data).hexdigest()
        except SafetensorError as e:
            raise BadPatch(f"{file} is damaged ({e}). Download the adapter again.") from None
    old = folder / "adapter_model.bin"
    if not old.is_file():
        raise BadPatch(f"{folder} has no adapter_model.safetensors. Download the adapter again.")
    try:
        return load_bin(old), hashlib.sha256(read_bytes(old, BadPatch)).hexdigest()
    except BadBackbone as e:
        raise BadPatch(str(e)) from None


def _pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of a module -> (A, B). Raises BadPatch for other tensors."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise BadPatch(
                f"{folder} holds {shortened(key, 120)}, which is no part of a LoRA of a linear "
                "module. Merge it into the model with peft (merge_and_unload), and save that model."
            )
        if match[2] in found.setdefault(match[1], {}):
            raise BadPatch(
                f"{folder} holds several adapters of {match[1]}. Save the one that is meant alone."
            )
        found[match[1]][match[2]] = tensor
    half = next((path for path, pair in found.items() if len(pair) != 2), None)
    if half is not None or not found:
        what = f"lacks a half of {half}" if half else "holds no tensors"
        raise BadPatch(f"{folder} {what}. Download the adapter again.")
    return {path: (pair["A"], pair["B"]) for path, pair in found.items()}


def _module(
    path: str, modules: Mapping[str, LinearModule], key_map: KeyMap, folder: Path, bb: Backbone
) -> LinearModule:
    """The module of a path, also of one that an older transformers wrote. Raises BadPatch."""
    name = path if path in modules else key_map(f"{path}.weight")[0].removesuffix(".weight")
    if name in modules:
        return modules[name]
    if f"{name}.weight" in key_map.state:
        what = f"changes {path}, which is no site of {bb.name} (errata doctor lists them)"
    else:
        what = f"changes {path}, which {bb.name} does not have"
    raise BadPatch(f"{folder} {what}. Give the adapter's own model, or merge it with peft.")


def _check_shapes(
    path: str, module: LinearModule, a: Tensor, b: Tensor, folder: Path, bb: Backbone
) -> None:
    fits = a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1]
    if not fits or (b.shape[0], a.shape[1]) != (module.out, module.into):
        raise BadPatch(
            f"{folder}: A {list(a.shape)} and B {list(b.shape)} of {path} do not fit {bb.name}, "
            f"where it has {module.into} inputs and {module.out} outputs. Name the adapter's model."
        )
    if not (a.is_floating_point() and bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise BadPatch(f"{folder} holds NaN or infinite numbers at {path}.")


def _scale(config: Mapping[str, Any], path: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r). Raises BadPatch where the config has another rank."""
    named = _of_pattern(config.get("rank_pattern"), path, config.get("r", 8), folder)
    if named != rank:
        raise BadPatch(
            f"{folder}: {path} has rank {rank}, and {CONFIG} says {shortened(named)}. It is "
            "damaged: download the adapter again."
        )
    alpha = _of_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8), folder)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _of_pattern(patterns: Any, path: str, default: Any, folder: Path) -> float:
    """The value of the first pattern (a regular expression of the path's end) that fits."""
    value = default
    if not isinstance(patterns or {}, dict):
        raise BadPatch(f"{folder / CONFIG}: {shortened(patterns)} stands where an object must.")
    for pattern, other in (patterns or {}).items():
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", path)
        except re.error as e:
            raise BadPatch(f"{folder}: the pattern '{shortened(pattern)}' ({e}).") from None
        if fits:
            value = other
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadPatch(f"{folder / CONFIG}: {shortened(value)} stands where a number must.")
    return value


def _header(config: Mapping[str, Any], folder: Path, sha256: str, bb: Backbone) -> Header:
    settings = {k: config[k] for k in ("r", "lora_alpha", "use_rslora") if k in config}
    return Header(
        editor="peft",
        arguments={"sha256": sha256, **settings},
        backbone=bb.name,
        revision=bb.revision,
        fingerprint=bb.fingerprint(),
        dtype=str(bb.dtype).removeprefix("torch."),
        versions=versions(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        notes={
            "source": folder.resolve().name,
            "base": str(config.get("base_model_name_or_path") or ""),
        },
    )
