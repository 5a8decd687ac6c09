"""Gate `none`: always open; the key only chooses the edit."""

from __future__ import annotations

from errata.core.gate import Gate


class OpenGate(Gate):
    """Lets every prompt pass, to the edit with the nearest last prompt token."""

    name = "none"
    always_open = True
