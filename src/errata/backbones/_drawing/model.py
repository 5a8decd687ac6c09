"""The modules of a pipeline as one model, and the text model of a pipeline with an output head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from errata.core.errors import BadBackbone

_HEAD = ("lm_head.weight", "language_model.lm_head.weight")


class PipelineConfig:
    """The configurations of all parts of a pipeline, in the form of transformers' own."""

    def __init__(self, parts: Mapping[str, Any], text: Any) -> None:
        self.parts = {name: _plain(config) for name, config in parts.items()}
        self._text = text

    def get_text_config(self) -> Any:
        return self._text

    def to_dict(self) -> dict[str, Any]:
        return dict(self.parts)

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def _plain(config: Any) -> Any:
    config = config.config if hasattr(config, "config") else config
    for method in ("to_diff_dict", "to_dict"):
        if hasattr(config, method):
            return getattr(config, method)()
    return dict(config) if isinstance(config, Mapping) else config


class PipelineModel(nn.Module):
    """The modules of a pipeline by their names there; called, it is the language model.

    head: the language model around the text model, if that has no head of its own.
    """

    def __init__(self, parts: Mapping[str, nn.Module], language: nn.Module, config: Any) -> None:
        super().__init__()
        for name, module in parts.items():
            self.add_module(name, module)
        if all(language is not m for m in self.modules()):
            self.add_module("head", language)
        self.language: list[nn.Module] = [language]  # a list: it is no second name for its weights
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's own forward."""
        return self.language[0](*args, **kwargs)


def with_head(encoder: Any, name: str, files: Path | None) -> tuple[Any, str]:
    """(the language model of a text model, where its head comes from).

    A text model without an output head gets that of its causal model: the tied embedding, or the
    matrix in its weight files. files: the folder with them, or with those of a whole model. Raises
    BadBackbone where there is none.
    """
    if encoder.get_output_embeddings() is not None:
        return encoder, "its own"
    cls = _causal_class(encoder)
    if cls is None:
        raise BadBackbone(
            f"{name}: transformers has no language model with the body {type(encoder).__name__}, "
            "so its text model can say nothing that an edit could be measured by."
        )
    with torch.device("meta"):
        model = cls(encoder.config)
    setattr(model, model.base_model_prefix, encoder)
    head = model.get_output_embeddings()
    embedding: Tensor = encoder.get_input_embeddings().weight
    stored = _stored_head(files) if files is not None else None
    if stored is not None:
        head.weight = nn.Parameter(stored.to(embedding), requires_grad=False)
        where = "from its weight files"
    elif encoder.config.get_text_config().tie_word_embeddings:
        head.weight, where = embedding, "the tied embedding"
    else:
        raise BadBackbone(
            f"{name}: its text model ({type(encoder).__name__}) has no output head, and its weight "
            f"files hold none, but {cls.__name__} needs one of its own. Name the folder of that "
            "model: --draw-with head=FOLDER."
        )
    model.generation_config.eos_token_id = encoder.config.get_text_config().eos_token_id
    return model.eval(), where


def _causal_class(encoder: Any) -> Any:
    """The class of transformers whose body is of this class."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        mapping: Any = auto._model_mapping
        cls = mapping.get(type(encoder.config), None)
        if cls is None:
            continue
        with torch.device("meta"):
            body = getattr(cls(encoder.config), cls.base_model_prefix, None)
        if type(body) is type(encoder):
            return cls
    return None


def _stored_head(files: Path) -> Tensor | None:
    for path in sorted(files.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            for key in _HEAD:
                if key in f.keys():
                    tensor: Tensor = f.get_tensor(key)
                    return tensor
    return None


def language_models(parts: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The parts that are decoder-only models of transformers, by name."""
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, PreTrainedModel)
        and part.config.model_type in known
        and not getattr(part.config, "is_encoder_decoder", False)
    }
