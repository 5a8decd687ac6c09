"""What a family's own processor makes of a prompt with pictures, found by running it.

Most processors put an image's tokens where its placeholder stands and leave the rest of the text
alone; then each image is encoded once. Others also rewrite the text around an image, add tokens at
its ends, or put image tokens at a fixed place. Of these, the text that they give to their tokenizer
is recorded.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as Pillow

#: outputs for the text that say nothing about images
_PLAIN = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Written:
    """text: what the tokenizer was given, image tokens spelled out. special: whether it added its
    special tokens to it. ids: of the whole prompt.
    """

    text: str
    special: bool
    ids: tuple[int, ...]


class _Recorder:
    """A tokenizer that keeps what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.given: list[tuple[Any, bool]] = []

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        self.given.append((text, bool(options.get("add_special_tokens", True))))
        return self._tokenizer(text, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def write(processor: Any, text: str, pictures: Sequence[Any], **options: Any) -> Written | None:
    """The prompt as the processor writes it; None if it is not one text for its tokenizer."""
    recorded = copy.copy(processor)
    tokenizer = processor.tokenizer
    recorder = recorded.tokenizer = _Recorder(tokenizer)
    output = recorded(text=[text], images=list(pictures), return_tensors="pt", **options)
    ids = tuple(output["input_ids"][0].tolist())
    for given, special in reversed(recorder.given):
        one = given if isinstance(given, str) else given[0] if given and len(given) == 1 else None
        if not isinstance(one, str):
            continue
        if len(tokenizer(one, add_special_tokens=special)["input_ids"]) == len(ids):
            return Written(one, special, ids)
    return None


def grey() -> Any:
    """A picture to try a processor on."""
    return Pillow.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8))


def position_mask(processor: Any) -> tuple[str, tuple[int, ...]]:
    """(the output that is 1 at image tokens and 0 elsewhere, the ids next to these); "" for none.

    Of a processor that puts the image into a text without a placeholder.
    """
    try:
        output = processor(text=["x"], images=[grey()], return_tensors="pt")
    except Exception:  # whatever a third party's processor raises
        return "", ()
    ids = output["input_ids"]
    for key, values in output.items():
        if key in _PLAIN or values.shape != ids.shape or set(values.unique().tolist()) != {0, 1}:
            continue
        places = values[0].nonzero().flatten().tolist()
        around = [c for c in (places[0] - 1, places[-1] + 1) if 0 <= c < ids.shape[1]]
        return key, tuple(ids[0, around].tolist())
    return "", ()


def marks_targets(processor: Any, key: str, text: str) -> bool:
    """Whether `key` is 0 over a whole prompt with an image, and 1 at the answer it is given."""
    output = longer = None
    with contextlib.suppress(Exception):  # whatever a third party's processor raises
        output = processor(text=[text], images=[grey()], return_tensors="pt")
        longer = processor(text=[text], images=[grey()], suffix=["x"], return_tensors="pt")
    if output is None or longer is None or key not in output or bool(output[key].any()):
        return False
    prompt = output["input_ids"].shape[1]
    marked: list[int] = longer[key][0].tolist()
    return len(marked) > prompt and marked == [0] * prompt + [1] * (len(marked) - prompt)
