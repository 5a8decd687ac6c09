"""A tiny Janus with random weights that draws 8 x 8 pixels from 16 tokens."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from errata.testing.zoo.plain import janus

#: random weights are sure of themselves: without this all seeds give one picture
DRAWING = {"guidance": 2.0, "temperature": 8.0}


def parts() -> tuple[Any, Any]:
    """Model and processor. Its generation config names the tokens that a picture begins with."""
    model, processor = janus()
    generation = model.generation_config
    begin = processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")
    generation.generation_kwargs = {"boi_token_id": begin}
    generation.bos_token_id, generation.pad_token_id = 1, 0
    return model, processor


@functools.cache
def wrapped() -> Any:
    """The backbone; one per process."""
    from errata.backbones import wrap

    return wrap(*parts(), name="tiny-janus", drawing=DRAWING)


@functools.cache
def folder() -> Path:
    """The folder of the saved model; one per process."""
    path = Path(tempfile.mkdtemp(prefix="errata-janus-"))
    model, processor = parts()
    model.save_pretrained(path)
    written = path / "generation_config.json"  # as published, not derived from the model's config
    config = json.loads(written.read_text())
    del config["_from_model_config"]
    written.write_text(json.dumps(config))
    processor.save_pretrained(path)
    return path
