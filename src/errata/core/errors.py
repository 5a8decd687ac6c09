"""Errors that the user can fix.

The message is one line: what was given, what exists, what to do. `errata` prints it and exits with
code 2. Any other exception is a bug of errata and exits with code 1. docs/errors.md lists every
class (a test compares).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 30
"""A longer list of names is not printed."""


def one_line(error: object, most: int = 200) -> str:
    """What a library says, for a message: one line without a full stop at the end, in whole words.

    Where the error says nothing, its type.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > most:
        cut = text[: most + 1].rpartition(" ")[0] or text[:most]
        text = f"{cut.rstrip('.,:;( ')} ..."
        return text
    return text.rstrip(".")


class UserError(Exception):
    """Base of all errors that the user can fix."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Notice(UserWarning):
    """A warning of errata itself; the command line prints it as one line, and no other's."""


class UnknownName(UserError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str = "") -> None:
        """advice: what else to do, one sentence; it stands instead of a long list of names."""
        known, name = sorted(known), str(name)
        close = difflib.get_close_matches(name, known, n=1)
        words = [f"unknown {kind} '{name}'."]
        if close:
            words.append(f"Did you mean '{close[0]}'?")
        if len(known) <= MOST_NAMES:
            words.append(f"Known: {', '.join(known) or 'none'}.")
        elif not close:
            words.append(f"{len(known)} are known.")
        super().__init__(" ".join([*words, advice]))


class BadSpec(UserError):
    """A benchmark, protocol, setting or option that cannot be read or does not exist."""


class BadEdit(UserError):
    """An edit that cannot be made: an empty target, no image where one is needed, bad JSON."""


class BadImage(UserError):
    """An image that is missing, broken, too large, or outside its root."""


class BadData(UserError):
    """A benchmark file that is missing or not in its published shape."""


class TooLong(UserError):
    """Prompt and target exceed the model's context."""


class BadBackbone(UserError):
    """A model that cannot be loaded, lacks a site, or cannot do what is asked of it."""


class MissingState(UserError):
    """A prepared state that an editor needs and that is not there."""


class FingerprintMismatch(UserError):
    """A patch or state that was made for another model."""


class BadPatch(UserError):
    """A folder or repository that is not a patch, or whose files do not match its header.

    Also a patch without the fingerprint of a model, and a patch that rewrites prompts while the
    model is called directly.
    """


class BadRun(UserError):
    """A run folder that is incomplete, damaged, of another version, or not comparable."""


class NotFinite(UserError):
    """A loss or logit became NaN or infinite while an edit was computed."""


class OutOfMemory(UserError):
    """A device has no memory left for one edit or one question alone."""


class BadEndpoint(UserError):
    """A model server or the hub that cannot be reached, refuses all requests, or stays busy."""


class DiskFull(UserError):
    """A file that cannot be written: the disk is full, or permission is missing."""


class BadOutput(UserError):
    """A path that nothing can be written to, or that holds something else.

    For example a folder where a file must be, a device, a name that is too long, or a file or
    folder that is not errata's own.
    """


class InUse(UserError):
    """A folder that another process is working in."""


class BadPlugin(UserError):
    """A plug-in of another package that cannot be loaded, fails, or has a name that is taken."""


class MissingMask(UserError):
    """A patch with a decision needs prompt lengths or an attention mask, and got neither."""


class MissingExtra(UserError):
    """An optional dependency that is not installed."""
