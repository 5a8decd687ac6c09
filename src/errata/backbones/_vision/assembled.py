"""Makes a whole vision-language model of a bundled tower and projector and a packaged text model.

The bundled folder has a `parts.json` beside its weights: which language model belongs to them. At
the first load both are written as one ordinary folder of transformers to ERRATA_HOME/models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from errata.backbones._language import packaged
from errata.core.errors import BadBackbone, MissingExtra
from errata.core.files import new_folder, read_json, writing
from errata.core.locks import locked
from errata.io import packaged_models

PARTS = "parts.json"
_COPIED = ("config.json", "generation_config.json", "processor_config.json")
#: seconds that one process waits for another that makes the same folder
_WAIT = 600.0
#: how the weights of the language model alone are called, and inside the whole
_LANGUAGE = ("model.", "model.language_model.")


def assets(name: str) -> Path:
    """The bundled folder of a model, whether it is there or not."""
    return Path(str(files("errata") / "assets" / name))


def is_in_parts(name: str) -> bool:
    return (assets(name) / PARTS).is_file()


def place(name: str) -> Path:
    """The folder in ERRATA_HOME for the whole model, whether it was made or not."""
    from errata.io.states import home

    told = hashlib.sha256()
    for file in (PARTS, *_COPIED):
        told.update((assets(name) / file).read_bytes())
    return home() / "models" / f"{name}-{told.hexdigest()[:12]}"


def folder(name: str) -> Path:
    """The whole model as a folder; made at the first call.

    Raises MissingExtra without the package of the language model, BadBackbone for a damaged file,
    BadOutput or DiskFull where ERRATA_HOME cannot hold it.
    """
    made = place(name)
    if (made / "config.json").is_file():
        return made
    parts = read_json(assets(name) / PARTS)
    model = packaged_models.MODELS[parts["language_model"]]
    language = packaged_models.place(parts["language_model"])
    if not (language / "config.json").is_file() and model.paths() is None:
        raise MissingExtra(
            f"'{name}' needs the language model '{parts['language_model']}', whose weights are in "
            f"the package {model.package}: {model.install}."
        )
    language = packaged.folder(parts["language_model"])
    with locked(made.parent, name=name, wait=_WAIT):
        if not (made / "config.json").is_file():  # another process may have made it by now
            with new_folder(made) as stage, writing(stage):
                _join(name, parts, language, stage)
    return made


def _join(name: str, parts: Mapping[str, Any], language: Path, stage: Path) -> None:
    """Writes the whole model to `stage`: weights in float32, configuration, processor."""
    import torch
    from safetensors.torch import load_file, save_file

    eye = assets(name) / parts["weights"]
    if hashlib.sha256(eye.read_bytes()).hexdigest() != parts["sha256"]:
        raise BadBackbone(
            f"the weights of '{name}' in {eye.parent} are not the published ones. Install errata "
            "again."
        )
    own, inner = _LANGUAGE
    text = load_file(language / "model.safetensors")
    whole = {inner + key.removeprefix(own): value for key, value in text.items()}
    whole |= {key: value.to(torch.float32) for key, value in load_file(eye).items()}
    save_file(whole, stage / "model.safetensors", metadata={"format": "pt"})
    for file in _COPIED:
        shutil.copyfile(assets(name) / file, stage / file)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        written = (language / file).read_text(encoding="utf-8")
        written = written.replace(json.dumps(parts["reserved_token"]), json.dumps("<image>"))
        (stage / file).write_text(written, encoding="utf-8")
