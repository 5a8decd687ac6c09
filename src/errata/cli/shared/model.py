"""The argument BACKBONE and the options that load it, defined once for all commands.

A command has a parameter `model: ModelOptions` and the decorator `@takes_model()`. On the command
line the argument stands where the parameter stands; the options come last.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from errata.cli.shared.options import bundled_models, parse_settings, quiet
from errata.core.errors import BadSpec

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load, and how."""

    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            help="A bundled name (micro-vlm), a hub id, a folder or a GGUF file.",
        ),
    ]
    style: Annotated[
        str | None,
        typer.Option(
            help="How a prompt is written: raw, easyedit or chat. Default: that of the --patch; "
            "else chat if the model has a chat template; else raw."
        ),
    ] = None
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None
    device_map: Annotated[
        str | None, typer.Option(help="Spread a large model over devices, for example `auto`.")
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = (
        None
    )
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")
    ] = False

    gguf_file: Annotated[
        str | None,
        typer.Option(help="A GGUF file in that folder or hub repository, read by transformers."),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a drawing.")] = None
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance of a drawing by its prompt.")
    ] = None
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of a picture's side.")] = None
    draw_with: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="What else the call of a pipeline takes; repeatable."),
    ] = None

    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most memory of a batch beyond the weights (8GB, 500MB); larger ones are cut. "
            "Default: half of what is free.",
        ),
    ] = None

    def load(self, heads: Sequence[Mapping[str, Any]] = ()) -> Backbone:
        """Loads the model quietly. Raises BadSpec on a wrong option, BadBackbone on a model.

        heads: of the patches that it is asked with; their style is the default.
        """
        from errata.backbones import check_style, load

        check_style(self.style, "--style")
        self._check_memory()
        if self.dtype not in DTYPES:
            raise BadSpec(f"unknown --dtype '{self.dtype}'. Known: {', '.join(DTYPES)}.")
        quiet()
        if self.backbone in bundled_models() and "OMP_NUM_THREADS" not in os.environ:
            # The bundled models are small: on a busy machine two threads are ten times slower.
            import torch

            torch.set_num_threads(1)
        bb = load(
            self.backbone,
            style=self.style,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            gguf_file=self.gguf_file,
            drawing=self.drawing,
            memory=self.memory,
        )
        if self.style is None:
            bb.style = _style_of(heads, bb)
        return bb

    def _check_memory(self) -> None:
        """Raises BadSpec before a model is loaded."""
        from errata.core.model.budget import parse_bytes

        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def drawing(self) -> dict[str, Any]:
        """The settings of a drawing that were given. Raises BadSpec."""
        named = {"steps": self.steps, "guidance": self.guidance, "size": self.size}
        given = {k: v for k, v in named.items() if v is not None}
        return {**parse_settings(self.draw_with, "--draw-with"), **given}


def _style_of(heads: Sequence[Mapping[str, Any]], bb: Backbone) -> str:
    """The style that all patches of this model were made with; else the model's own.

    A patch of another model is refused when it is loaded, whatever its style.
    """
    from errata.backbones import check_style

    headers = [h["header"] for h in heads if bb.identified_by(h["header"]["fingerprint"])]
    styles = {str(note) for h in headers if (note := (h.get("notes") or {}).get("style"))}
    if not bb.style or len(styles) != 1:
        return bb.style
    (style,) = styles
    check_style(style, "style of the patch")
    return style


def takes_model(
    *,
    without: tuple[str, ...] = (),
    optional: bool = False,
    draws: bool = False,
    batches: bool = False,
) -> Callable[[Callable[..., None]], Any]:
    """Replaces the parameter `model` of a command by the fields of ModelOptions.

    without: fields that the command does not offer; they keep their defaults. optional: BACKBONE
    may be left out, and is then "". draws: whether it offers the settings of a drawing. batches:
    whether it offers --memory.
    """
    without = without if draws else (*without, "steps", "guidance", "size")
    without = without if batches else (*without, "memory")
    hints = _model_hints()
    options = {
        name: p.replace(kind=p.KEYWORD_ONLY, annotation=hints[name])
        for name, p in inspect.signature(ModelOptions).parameters.items()
        if name not in without
    }
    if optional:
        options["backbone"] = options["backbone"].replace(default="")

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            model = ModelOptions(**{name: values.pop(name) for name in options})
            command(model=model, **values)

        signature = run.__dict__["__signature__"] = _signature(command, options)
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return run

    return decorate


@functools.cache
def _model_hints() -> dict[str, Any]:
    return get_type_hints(ModelOptions, include_extras=True)


def _signature(
    command: Callable[..., None], options: Mapping[str, inspect.Parameter]
) -> inspect.Signature:
    """The signature that typer reads. Every parameter is passed by name."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        options["backbone"]
        if name == "model"
        else p.replace(kind=p.KEYWORD_ONLY, annotation=hints[name])
        for name, p in inspect.signature(command).parameters.items()
    ]
    return inspect.Signature(
        [*parameters, *(p for name, p in options.items() if name != "backbone")]
    )
