"""Gate `leaky`: DualEdit's gate as published, which reads the answer.

Source: Shi et al. 2025 (DualEdit), code at 00ab52f. It compares the last tokens of prompt AND
answer. The answer of a question exists only while it is scored, and is then the gold answer: the
gate tells answers apart, not questions, and does not open when the model generates. It is here to
measure how much of the published locality this explains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.core.gate import Gate, TokenColumns


class LeakyGate(Gate):
    """Cosine of the last tokens of prompt and answer, with a threshold."""

    name = "leaky"
    reads = "last token with the gold answer"
    reads_answer = True
    warning = (
        "gate=leaky compares answers: while a question is scored it sees the gold answer. "
        "Use it only to measure that leak."
    )

    def key(self, states_BTd: Tensor, columns: TokenColumns) -> Tensor:
        at = torch.arange(states_BTd.shape[1], device=states_BTd.device)
        last_B = (columns.real * at).amax(1)
        return states_BTd[torch.arange(states_BTd.shape[0], device=states_BTd.device), last_B]
