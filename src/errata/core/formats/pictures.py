"""Images in memory as data URIs, so that a prompt with one is a value like any other. No torch."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from typing import Any

import numpy as np
from PIL import Image as Pillow

from errata.core.errors import BadImage

_DATA = re.compile(r"data:[\w.+/;=-]*;base64,", re.IGNORECASE)
_TYPES = "a path, a PIL image, an array of uint8 values [rows, columns, 3], or the bytes of a file"
#: PNG keeps these as they are; others have no fixed range (I, F) or become RGB
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def data_of(uri: str) -> bytes | None:
    """The bytes of a data URI; None for any other URI. Raises BadImage."""
    head = _DATA.match(uri)
    if head is None:
        return None
    try:
        return base64.b64decode(uri[head.end() :].encode(), validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadImage(f"an image given as a data URI is not valid base64 ({e}).") from None


def data_uri(data: bytes) -> tuple[str, str]:
    """(data URI, sha256) of the bytes of an image file."""
    return "data:;base64," + base64.b64encode(data).decode(), hashlib.sha256(data).hexdigest()


def uri_of(value: Any) -> tuple[str, str | None]:
    """(URI, sha256 or None) of whatever may be given as an image. Raises BadImage."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, os.PathLike):
        return os.fsdecode(value), None
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not len(value):
            raise BadImage(f"an image has no bytes. Give {_TYPES}.")
        return data_uri(bytes(value))
    if isinstance(value, np.ndarray):
        value = _from_array(value)
    if isinstance(value, Pillow.Image):
        return data_uri(_png(value))
    raise BadImage(f"an image is given as a {type(value).__name__}. Give {_TYPES}.")


def shown(uri: str) -> str:
    """The URI for people: an image in memory is named by its hash."""
    if not _DATA.match(uri):
        return uri
    return f"image in memory {hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _from_array(values: np.ndarray[Any, Any]) -> Pillow.Image:
    shape = "x".join(map(str, values.shape))
    size = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
    if values.dtype != np.uint8 or not size or not values.size:
        raise BadImage(f"an image is given as an array {shape} of {values.dtype}. Give {_TYPES}.")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Pillow.fromarray(np.ascontiguousarray(values))


def _png(picture: Pillow.Image) -> bytes:
    """The picture as a PNG file, with its pixels and its orientation as they are."""
    if picture.mode not in _MODES:
        if picture.mode.startswith(("I", "F")):
            raise BadImage(
                f"an image has the mode '{picture.mode}', which has no fixed range. Convert it to "
                "8 bits per channel."
            )
        picture = picture.convert("RGBA" if picture.mode in ("PA", "RGBa", "La") else "RGB")
    buffer = io.BytesIO()
    try:
        picture.save(buffer, "PNG", compress_level=1, exif=picture.getexif())
    except (OSError, ValueError, SyntaxError) as e:
        raise BadImage(f"an image cannot be read ({e}). Open it again, or give its file.") from None
    return buffer.getvalue()
