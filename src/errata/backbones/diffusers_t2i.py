"""Any text-to-image pipeline of diffusers whose text encoder is a language model: Sana, Lumina 2,
Qwen-Image, Z-Image, Ovis-Image, FLUX.2 Klein, CogView4, HunyuanImage, LongCat-Image, ...

One file for all of them. The pipeline's own call draws, with its template, padding, negative
prompt, guidance, scheduler and VAE; where its text model is read, and what lies between it and the
picture, is measured by `_drawing.probe`. The text model answers questions as any language model
does (`hf_lm`); one without an output head gets that of its causal model.

`pip install 'errata[image]'`. Drawing settings: steps, guidance, size, negative, together (the most
pictures of one call), and whatever else the pipeline's call takes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from errata.backbones import _folders
from errata.backbones._drawing.generator import MeasuredGenerator
from errata.backbones._drawing.installed import diffusers_for
from errata.backbones._drawing.loss import PipelineLoss
from errata.backbones._drawing.model import (
    PipelineConfig,
    PipelineModel,
    language_models,
    with_head,
)
from errata.backbones._drawing.settings import arguments
from errata.backbones._identity import ModelIdentity, weights_digest
from errata.backbones._text import TextBackbone
from errata.core.errors import BadBackbone
from errata.core.formats.validation import whole_number
from errata.core.hooks.context import Site
from errata.core.model.outline import ModelOutline
from errata.core.types import Prompt

#: pixels of a side while the path is measured
SMALL = 256
#: pictures of one call, where nothing is set
TOGETHER = 4
_GENERATORS = ("transformer", "unet", "decoder", "prior")


class DiffusersT2I(MeasuredGenerator):
    """A pipeline of diffusers that draws from the hidden states of a language model."""

    bundled: ClassVar[Mapping[str, str]] = {}
    has_own_loss = True

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str = "",
        revision: str = "",
        style: str | None = None,
        source: Path | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> None:
        """source: the pipeline's folder. drawing: settings of its drawings."""
        TextBackbone.__init__(self)
        self.pipeline, self.revision = pipeline, revision
        self.name = name or type(pipeline).__name__
        given = dict(drawing or {})
        self.head_files = given.pop("head", None)
        model, key, self.head_from = self._assembled(pipeline, source)
        language = model.language[0]
        self.encoder = model.get_submodule(key)
        self.generator = self._generator_of(dict(model.named_children()))
        components = pipeline.components
        tokenizer = (
            components[key.replace("text_encoder", "tokenizer")]
            if key.startswith("text_encoder")
            else components["processor"].tokenizer
        )
        self.together = whole_number("together", given.pop("together", TOGETHER), least=1)
        self.drawing = {"together": self.together, **given}
        self.drawn_by = {"diffusers": version("diffusers")}
        self._arguments = arguments(type(pipeline).__call__, given, self.name)
        self.steps = int(self._arguments.pop("num_inference_steps", 0)) or _default_steps(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        self.be_language_model(model, language, tokenizer, style)
        self.identify(tokenizer, None)

    def _assembled(self, pipeline: Any, source: Path | None) -> tuple[PipelineModel, str, str]:
        """(the modules of a pipeline as one model, the name of its text model, whose head it has).

        source: the folder of its files.
        """
        parts = {k: v for k, v in pipeline.components.items() if isinstance(v, nn.Module)}
        key = self._encoder_of(parts)
        encoder: Any = parts[key]
        files = source / key if source is not None else None
        files = Path(self.head_files) if self.head_files else files
        language, head_from = with_head(encoder, self.name, files)
        described = {"pipeline": type(pipeline).__name__, **pipeline.components}
        config = PipelineConfig(described, encoder.config.get_text_config())
        return PipelineModel(parts, language, config), key, head_from

    def _identify_as_stored(self, source: Path | None, stored: Callable[[], Any]) -> None:
        """For weights that are narrower in memory: the model is the one of its files.

        stored: loads the pipeline again, as its files are.
        """

        def digest(as_loaded: bool) -> str | None:
            if not as_loaded:
                return None
            return weights_digest(self._assembled(stored(), source)[0])

        self._identity = ModelIdentity(self.model, self.tokenizer, self.tokenizer, digest)

    def _encoder_of(self, parts: Mapping[str, nn.Module]) -> str:
        found = language_models(parts)
        if len(found) != 1:
            classes = {k: type(m).__name__ for k, m in parts.items() if k in found or "enc" in k}
            what = "none is" if not found else f"{len(found)} are"
            raise BadBackbone(
                f"{self.name} has the text encoders {', '.join(classes.values()) or 'none'}: "
                f"{what} a decoder-only language model, and errata edits the one that is. Choose "
                "another pipeline, such as Sana, Lumina 2 or Qwen-Image."
            )
        return next(iter(found))

    def _generator_of(self, parts: Mapping[str, nn.Module]) -> nn.Module:
        for key in _GENERATORS:
            if key in parts:
                return parts[key]
        raise BadBackbone(f"{self.name} has no part {' or '.join(_GENERATORS[:2])} that draws.")

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return "_diffusers_version" in config and "model_type" not in config

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        style: str | None = None,
        trust_remote_code: bool = False,
        gguf_file: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> DiffusersT2I:
        """A folder or hub id of a pipeline. Raises BadBackbone with the library's reason."""
        pipelines = diffusers_for(name)
        cls._check_index(name, revision)
        options: dict[str, Any] = {
            "revision": revision,
            "dtype": _dtype(name, dtype),
            "device_map": device_map,
            "trust_remote_code": trust_remote_code,
        }
        with _folders.load_errors(name, "pipeline of diffusers", "one of its parts"):
            pipeline = cls.open(name, pipelines, options)
            if device is not None:
                pipeline.to(device)
        source = Path(name) if Path(name).is_dir() else None
        with _folders.load_errors(name, "pipeline of diffusers", "its parts do not fit together"):
            backbone = cls(
                pipeline, name=name, revision=revision or "", style=style, source=source,
                drawing=drawing,
            )  # fmt: skip
        kept = {**options, "dtype": _dtype(name, "auto"), "device_map": None}
        if kept["dtype"].itemsize > options["dtype"].itemsize:
            backbone._identify_as_stored(source, lambda: cls.open(name, pipelines, kept))
        return backbone

    @classmethod
    def _check_index(cls, name: str, revision: str | None) -> None:
        """Raises BadBackbone for a pipeline without a text model, before its weights are read."""
        index = Path(name) / _folders.PIPELINE
        parts = _folders.read_object(index) if index.is_file() else None
        parts = parts or _folders.pipeline_of(name, revision) or {}
        entries = [p for p in parts.values() if isinstance(p, list)]
        if entries and not any(map(_may_be_model_of_transformers, entries)):
            raise BadBackbone(
                f"'{name}' ({parts.get('_class_name')}) has no text encoder: what reads the words "
                "of a prompt there, if anything, is the image generator itself, and it has no "
                "output head that says an answer. errata edits a language model that stands before "
                "a generator. Choose another pipeline, such as Sana, Lumina 2 or Qwen-Image."
            )

    @classmethod
    def open(cls, name: str, pipelines: Any, options: Mapping[str, Any]) -> Any:
        """The pipeline in a folder or hub repository. pipelines: the package diffusers."""
        return pipelines.DiffusionPipeline.from_pretrained(name, **options)

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> ModelOutline:
        """With the weights: the path of a pipeline is measured."""
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        return cls.load(name, **options).outlined()  # type: ignore[arg-type]

    @classmethod
    def wrap(
        cls,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        style: str | None = None,
        drawing: Mapping[str, Any] | None = None,
    ) -> DiffusersT2I:
        """Around a pipeline in memory; `processor` is not needed."""
        return cls(model, name=name, style=style, drawing=drawing)

    def measure(self) -> list[Site]:
        """Of a small picture, or of one as large as it is drawn where that fails."""
        self._small = self._smaller()
        while True:
            try:
                with self.small():
                    return super().measure()
            except BadBackbone:
                if self._small == self._arguments:
                    raise
                self._small = self._arguments

    def _smaller(self) -> Mapping[str, Any]:
        small = {"size": SMALL} if self.drawing.get("size", SMALL + 1) > SMALL else {}
        return {**self._arguments, **arguments(type(self.pipeline).__call__, small, self.name)}

    @contextmanager
    def small(self) -> Iterator[None]:
        given, self._arguments = self._arguments, dict(self._small)
        try:
            yield
        finally:
            self._arguments = given

    def facts(self) -> Mapping[str, Any]:
        return {
            "class": type(self.pipeline).__name__,
            "text model": f"{type(self.encoder).__name__}, output head: {self.head_from}",
            **super().facts(),
        }

    def call(
        self, texts: Sequence[str], seeds: Sequence[int], *, steps: int, pixels: bool
    ) -> Sequence[Any]:
        generators = [torch.Generator().manual_seed(s) for _ in texts for s in seeds]
        out = self.pipeline(
            prompt=texts[0] if len(texts) == 1 else list(texts),
            num_inference_steps=steps,
            num_images_per_prompt=len(seeds),
            generator=generators,
            output_type="np" if pixels else "latent",
            **self._arguments,
        )
        pictures: Sequence[Any] = out.images
        return pictures

    def generator_loss(
        self, prompt: Prompt, goal: Prompt, *, row: int, seeds: Sequence[int]
    ) -> PipelineLoss:
        return PipelineLoss(self, self._with_gradients, prompt, goal, row, seeds)

    @property
    def _plain_call(self) -> Callable[..., Any]:
        """The pipeline's call without `torch.no_grad` around it."""
        call: Callable[..., Any] = inspect.unwrap(type(self.pipeline).__call__)
        return call

    def _with_gradients(self, text: str, seed: int) -> None:
        self._plain_call(
            self.pipeline,
            prompt=text,
            num_inference_steps=self.steps,
            num_images_per_prompt=1,
            generator=[torch.Generator().manual_seed(seed)],
            output_type="latent",
            **self._arguments,
        )


def _may_be_model_of_transformers(part: list[Any]) -> bool:
    """part: an entry of the index, [library, class]; a class of another library may be one."""
    import transformers

    if len(part) != 2 or not isinstance(part[0], str):
        return False
    if part[0] != "transformers":
        return part[0] != "diffusers"
    made = getattr(transformers, str(part[1]), None)
    return made is None or (
        isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)
    )


def _default_steps(pipeline: Any) -> int:
    return int(inspect.signature(type(pipeline).__call__).parameters["num_inference_steps"].default)


def _dtype(name: str, dtype: str) -> Any:
    """`auto`: as the pipeline's largest part is stored; of a hub id: bfloat16."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if not Path(name).is_dir():
        return torch.bfloat16
    kinds: dict[str, int] = {}
    for file in Path(name).glob("*/*.safetensors"):
        with file.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        for key, entry in header.items():
            if key != "__metadata__":
                size = entry["data_offsets"][1] - entry["data_offsets"][0]
                kinds[entry["dtype"]] = kinds.get(entry["dtype"], 0) + size
    named = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return named.get(max(kinds, key=lambda k: kinds[k], default="F32"), torch.float32)
