"""Weights in GGUF, the format of llama.cpp, read by transformers into an ordinary dense model.

A GGUF file holds a whole model: configuration, tokenizer and weights, most of them quantised. They
are dequantised when they are loaded, so that errata sees the numbers that llama.cpp computes with.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from errata.backbones._folders import load_errors
from errata.core.errors import BadBackbone, MissingExtra

ENDING = ".gguf"
_KIND = "language model in GGUF"


def split(name: str, file: str | None) -> tuple[str, str | None]:
    """(folder or hub id, file in it) of a model that may be named by the path of its file."""
    if file is None and name.lower().endswith(ENDING) and not Path(name).is_dir():
        folder, _, file = name.replace(os.sep, "/").rpartition("/")
        return folder or ".", file
    return name, file


def joined(name: str, file: str) -> str:
    """The one name of a model that `split` takes apart; errata's headers and plans hold it."""
    return f"{name.rstrip('/')}/{file}"


def check(name: str, file: str) -> None:
    """Raises BadBackbone for a file that is none of GGUF, MissingExtra without its reader."""
    folder = Path(name)
    if not file.lower().endswith(ENDING):
        raise BadBackbone(f"'{file}' is no GGUF file. Name one that ends with {ENDING}.")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.lower()):
        raise BadBackbone(
            f"'{file}' is one part of a model in several files. Put them together with "
            "`llama-gguf-split --merge` of llama.cpp, and name that file."
        )
    hub = name.count("/") == 1 and not folder.is_absolute() and not name.startswith(".")
    if folder.is_dir() or not hub:
        path = folder / file
        if not path.is_file():
            there = sorted(p.name for p in folder.glob("*.gguf")) if folder.is_dir() else []
            hint = f" It has {', '.join(there[:5])}." if there else ""
            raise BadBackbone(f"'{name}' has no file '{file}'.{hint} Name a GGUF file in it.")
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise BadBackbone(f"{path} is no GGUF file, or damaged. Download it again.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra(f"'{file}' needs the reader of GGUF: pip install 'errata[gguf]'.")


def config_of(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """The configuration that transformers reads from the file. Raises BadBackbone."""
    path = Path(name, file)
    stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
    return dict(_read_config(name, file, revision, stamp))


@functools.lru_cache(maxsize=1)
def _read_config(name: str, file: str, revision: str | None, stamp: object) -> dict[str, Any]:
    """Kept for the load that follows: a large vocabulary takes half a minute to be read."""
    from transformers import PretrainedConfig

    with load_errors(joined(name, file), _KIND, "its configuration"):
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision, gguf_file=file)
    return dict(config)


def reading(name: str) -> AbstractContextManager[None]:
    """Whatever the reader of GGUF raises becomes BadBackbone."""
    return load_errors(name, _KIND, "its weights or tokenizer")


def options(file: str) -> dict[str, Any]:
    """Keywords of `from_pretrained`."""
    from transformers import GgufConfig

    return {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}


def options_of_model(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """As `options`, with the configuration, which is not read a second time."""
    from transformers import AutoConfig

    return {**options(file), "config": AutoConfig.for_model(**config_of(name, file, revision))}


def make_dense(model: Any) -> None:
    """Takes the marks of a quantised model off one whose weights were all dequantised.

    It is an ordinary model, which can be saved and has the fingerprint of its saved copy.
    """
    config = getattr(model, "config", None)
    method = getattr(getattr(config, "quantization_config", None), "quant_method", None)
    if method != "gguf" or not all(p.is_floating_point() for p in model.parameters()):
        return
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    vars(model).pop("quantization_method", None)
