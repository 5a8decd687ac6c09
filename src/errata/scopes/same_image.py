"""Scope `same_image`: any question about exactly the edited picture; none without a picture."""

from __future__ import annotations

from errata.core.types import Prompt
from errata.scopes._hashes import NONE, EqualScope, number, picture


class SameImageScope(EqualScope):
    """Equal picture files."""

    name = "same_image"
    reach = "any question about this picture"
    modalities = frozenset({"image"})
    choice = 1

    def _number(self, prompt: Prompt) -> int:
        return number(*map(picture, prompt.images)) if prompt.images else NONE
