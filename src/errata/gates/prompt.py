"""Gate `prompt`: opens where last prompt tokens are similar enough.

The published gate of DualEdit without its leak: both sides are read before the answer begins.
"""

from __future__ import annotations

from errata.core.gate import Gate


class PromptGate(Gate):
    """Cosine of the last prompt tokens of edit and prompt, with a threshold."""

    name = "prompt"
