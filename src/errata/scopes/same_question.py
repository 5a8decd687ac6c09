"""Scope `same_question`: exactly the edited question, about any picture."""

from __future__ import annotations

from errata.core.types import Prompt
from errata.scopes._hashes import EqualScope, number


class SameQuestionScope(EqualScope):
    """Equal words."""

    name = "same_question"
    reach = "this question in these words, about any picture"

    def _number(self, prompt: Prompt) -> int:
        return number(prompt.text)
