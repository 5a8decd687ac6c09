"""Errors that are the user's to mend.

Each is one line that says what was given, what exists and what to do. `errata` prints it and ends
with exit code 2. Everything else that goes wrong is our bug and ends with 1. docs/errors.md lists
every class (a test compares).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of all errors that the user can mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UnknownName(UserError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        super().__init__(f"unknown {kind} '{name}'.{hint} Known: {', '.join(known) or 'none'}.")


class BadSpec(UserError):
    """A command-line specification (benchmark, protocol, setting) that cannot be read."""


class BadEdit(UserError):
    """An edit that cannot be made: an empty target, no image where one is needed, bad JSON."""


class BadImage(UserError):
    """An image that is missing, broken, too large, or outside its root."""


class BadData(UserError):
    """A benchmark file that is missing or not in its published shape."""


class TooLong(UserError):
    """Prompt and target exceed the model's context."""


class BadBackbone(UserError):
    """A model that cannot be loaded or whose sites cannot be resolved."""


class MissingState(UserError):
    """An editor that must be prepared first."""


class FingerprintMismatch(UserError):
    """A patch or state made for another model."""


class BadPatch(UserError):
    """A folder that is not a patch, or whose content does not match its header.

    Also a patch that does not say which model it was made for, and one that rewrites the prompt
    when the model itself is called.
    """


class BadRun(UserError):
    """A run folder that is incomplete, of another version, or not comparable."""


class NotFinite(UserError):
    """A loss or logit became NaN or infinite while an edit was searched."""


class BadEndpoint(UserError):
    """A model server that cannot be reached, refuses every request, or stays busy."""


class DiskFull(UserError):
    """The run's folder cannot be written to."""


class MissingMask(UserError):
    """A patch that decides from the prompt was run without an attention mask or prompt lengths."""


class MissingExtra(UserError):
    """An optional dependency is needed."""
