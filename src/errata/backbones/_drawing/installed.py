"""Code of a model that its user has installed: diffusers, and code that its authors alone publish.

errata ships none of it, and runs code of authors on request only.
"""

from __future__ import annotations

import importlib
import sys
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


def diffusers_for(name: str) -> Any:
    """The package diffusers. name: of the pipeline that needs it. Raises MissingExtra."""
    try:
        import diffusers
    except ImportError:
        raise MissingExtra(
            f"'{name}' is a pipeline of diffusers, which is not installed: pip install "
            "'errata[image]'."
        ) from None
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    return diffusers


def open_around(
    pipeline: Any, folder: str, own: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """A pipeline around parts `own` that are loaded already. pipeline: its class.

    diffusers is given None for them, and they are put in afterwards: where the index of the folder
    names code of the authors by a module that diffusers does not know, it refuses the part itself.
    """
    opened = pipeline.from_pretrained(folder, **dict.fromkeys(own), **options)
    opened.register_modules(**own)
    return opened
