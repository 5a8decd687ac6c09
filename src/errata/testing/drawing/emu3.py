"""A tiny Emu3 with random weights that draws 32 x 32 pixels from 4 rows of 4 tokens."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from errata.testing.zoo.plain import emu3

#: random weights are sure of themselves: without this all seeds give one picture
DRAWING = {"guidance": 2.0, "temperature": 8.0, "size": 32}


def parts() -> tuple[Any, Any]:
    """Model and processor. Its generation config names the token that ends a picture."""
    model, processor = emu3()
    generation, words = model.generation_config, processor.tokenizer
    generation.bos_token_id, generation.eos_token_id = words.bos_token_id, words.eos_token_id
    generation.pad_token_id = words.pad_token_id
    return model, processor


@functools.cache
def wrapped() -> Any:
    """The backbone; one per process."""
    from errata.backbones import wrap

    return wrap(*parts(), name="tiny-emu3", drawing=DRAWING)


@functools.cache
def folder() -> Path:
    """The folder of the saved model; one per process."""
    path = Path(tempfile.mkdtemp(prefix="errata-emu3-"))
    model, processor = parts()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
