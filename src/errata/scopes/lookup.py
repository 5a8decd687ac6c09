"""Scope `lookup`: exactly the edited question about exactly the edited picture.

A table and no more: it shows what a score says that does not ask for generality.
"""

from __future__ import annotations

from errata.core.types import Prompt
from errata.scopes._hashes import EqualScope, whole


class LookupScope(EqualScope):
    """Equal words and equal picture files."""

    name = "lookup"
    reach = "only this question about this picture"

    def _number(self, prompt: Prompt) -> int:
        return whole(prompt)
