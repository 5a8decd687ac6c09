"""The text of a growing answer, piece by piece, up to a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class AnswerText:
    """What may be shown of an answer so far: `sent` never has to be taken back.

    decode: ids to text. stops: the answer ends in front of the first of them. ended: whether one
    came. text: all that there is.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self.decode, self.stops = decode, tuple(stops)
        self.text = self.sent = ""
        self.ended = False

    def grow(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The next piece, for all ids so far; "" while it may still change. last: none follow."""
        self.text = self.decode(ids)
        found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True
        end = len(self.text) if last or self.ended else self._certain()
        if not self.text.startswith(self.sent) or end <= len(self.sent):
            return ""
        piece = self.text[len(self.sent) : end]
        self.sent += piece
        return piece

    def _certain(self) -> int:
        """How much of the text stays whatever follows."""
        end = len(self.text.rstrip(UNFINISHED))
        for stop in self.stops:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if self.text.endswith(stop[:size], 0, end):
                    end -= size
                    break
        return end
