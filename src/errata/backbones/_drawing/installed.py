"""Code of a model that its user has installed: errata ships none of it, and runs it on request."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from errata.backbones import _folders
from errata.backbones._drawing.generator import MeasuredGenerator
from errata.backbones._text import TextBackbone
from errata.core.errors import BadBackbone, BadSpec, MissingExtra


class AuthorsModel(MeasuredGenerator):
    """A model that draws by code of its authors, one prompt and seed at a time.

    kind: its name in messages. settings: of its drawings.
    """

    bundled: ClassVar[Mapping[str, str]] = {}
    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any, name: str, drawing: Mapping[str, Any] | None) -> None:
        """drawing: settings of its drawings. Raises BadSpec for others."""
        TextBackbone.__init__(self)
        self.name, self.drawing = name or type(model).__name__, dict(drawing or {})
        if unknown := sorted(self.drawing.keys() - set(self.settings)):
            raise BadSpec(
                f"{self.name} draws without a setting '{unknown[0]}'. It takes: "
                f"{', '.join(self.settings)}."
            )

    @classmethod
    def around(
        cls, model: Any, *parts: Any, name: str, device: str | None = None, **options: Any
    ) -> Self:
        """The backbone of a loaded model, which is frozen and moved. Raises BadBackbone."""
        model.requires_grad_(False).eval()
        if device is not None:
            model = model.to(device)
        with _folders.load_errors(name, cls.kind, "its parts do not fit together and"):
            made: Any = cls
            backbone: Self = made(model, *parts, name=name, **options)
            return backbone


def installed(module: str, *, model: str, how: str, trusted: bool) -> Any:
    """A module of the user's own installation. how: the way to install it.

    Raises BadBackbone without `trusted`, MissingExtra where it is not installed.
    """
    if not trusted:
        raise BadBackbone(
            f"{model} runs code of its authors ({module.partition('.')[0]}). Load it with "
            "--trust-remote-code if you trust what you installed."
        )
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingExtra(
            f"{model} needs code of its authors, which is not installed or does not fit "
            f"({' '.join(str(e).split())[:100]}). {how}"
        ) from e
