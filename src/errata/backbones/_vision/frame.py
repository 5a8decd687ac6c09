"""Special tokens that a processor puts around every prompt, besides those of its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Ids in front of a prompt (a second BOS) and behind it (a separator before the answer)."""

    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.front or self.back)

    def without(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A processor's output for one prompt, without the framing tokens."""
        columns = output["input_ids"].shape[1]
        inner = slice(len(self.front), columns - len(self.back))
        return {
            k: v[:, inner] if v.dim() == 2 and tuple(v.shape) == (1, columns) else v
            for k, v in output.items()
        }


def frame_of(
    process: Callable[[str], Any], ids: Callable[[str], Sequence[int]], special: Container[int]
) -> Frame:
    """The frame that `process` puts around a text, found by a probe.

    process: the processor on a text without pictures. ids: the tokenizer on a text. special: ids of
    special tokens; a processor that adds words takes no text alone.
    """
    text = "the"
    try:
        given = process(text)["input_ids"]
    except Exception:  # a processor of a third party that takes no text without pictures
        return Frame()
    got, plain = [int(i) for i in given[0]], list(ids(text))
    for start in range(len(got) - len(plain) + 1):
        end = start + len(plain)
        if got[start:end] == plain and all(i in special for i in (*got[:start], *got[end:])):
            return Frame(tuple(got[:start]), tuple(got[end:]))
    return Frame()
