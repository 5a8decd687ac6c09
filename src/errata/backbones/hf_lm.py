"""Any language model of transformers (`AutoModelForCausalLM`): Llama, Mistral, GPT-2, ...

Sites are found by structure (`_sites`), the forward is shared (`_decoder`), and text is encoded by
the model's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.backbones import _folders, _sites, _tokens, _weights
from errata.backbones._folders import forward_errors
from errata.backbones._forward import Finish, unchanged
from errata.backbones._language import gguf, logits
from errata.backbones._overrides import forward_as
from errata.backbones._text import TextBackbone
from errata.core.errors import BadBackbone
from errata.core.hooks.manager import HookManager
from errata.core.model.outline import ModelOutline
from errata.core.types import Prompt
from errata.io import packaged_models


class HfLm(TextBackbone):
    """A language model on the ordinary transformers classes: text in, text out."""

    bundled: ClassVar[Mapping[str, str]] = dict.fromkeys(packaged_models.MODELS, "")
    capabilities = frozenset({"text", "generate", "resume"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        revision: str = "",
        style: _tokens.Style = "raw",
        source: Path | None = None,
        trusted: bool = True,
        gguf_file: str = "",
    ) -> None:
        """source: folder of the weight files; trusted: the model was loaded from there.

        gguf_file: the one of them that holds the weights.
        """
        super().__init__()
        self.name = name or type(model).__name__
        self.revision = revision
        self.style = style
        self._set_language_model(model, model, tokenizer)
        self.hooks = HookManager.of(model, lambda _: self.layout.sites)
        self.finish = self._finish()
        self.identify(tokenizer, source, trusted=trusted, gguf_file=gguf_file)

    def _set_language_model(self, model: Any, language: Any, tokenizer: Any) -> None:
        """language: the language model inside `model`, or `model` itself."""
        self.model, self.tokenizer = model, tokenizer
        self.layout = _sites.resolve(language)
        self.layout.missing = [m for m in self.layout.missing if m not in ("vision", "bridge")]
        self.site_paths, self.missing_sites = self.layout.paths, self.layout.missing
        self.missing_because = self.layout.reasons
        self.text, self.blocks, self.head = self.layout.text, self.layout.blocks, self.layout.head
        self.tower = None
        self.text_config = language.config.get_text_config()
        self.end_ids = _tokens.end_ids(tokenizer, language)
        self.line_breaks = _tokens.line_breaks(tokenizer)
        self.stop_ids = self.end_ids | self.line_breaks.keys()

    def _finish(self) -> Finish:
        """What the model does to the output of its head, from one forward of three tokens.

        Raises BadBackbone where errata's forward is not the model's own.
        """
        if self._weightless():
            return unchanged
        ids = [1, 2, 3]
        batch = self._batch((Prompt(("",)),), [ids], [len(ids)], ((),), [])
        raw: list[Tensor] = []
        own_head = self.head.forward

        def head(x: Tensor) -> Tensor:
            raw.append(own_head(x))
            return logits.spread(raw[-1])

        model: Any = getattr(self.model, "_orig_mod", self.model)  # nothing is compiled for this
        with torch.no_grad(), self.unedited(), forward_errors(self.name):
            with forward_as(self.head, head), self.hooks.forward():
                own: Tensor = model(**batch.inputs, use_cache=False).logits
            if not model.training:  # dropout
                context = self.context_of(batch, None)
                stream, _ = self._start(batch, context, None)
                with self.hooks.forward(), self.hooks.question(context):
                    logits.check_same(self.head(stream), raw[0], self.name)
        return logits.rule(logits.spread(raw[0]), own, self.text_config, self.name)

    def _weightless(self) -> bool:
        """Whether the weights are nowhere: on the meta device, and not offloaded."""
        return not hasattr(self.head, "_hf_hook") and any(p.is_meta for p in self.head.parameters())

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )

        kind = config.get("model_type")
        return (
            kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
            and "vision_config" not in config
        )

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
    ) -> HfLm:
        """A bundled name, a folder or a hub id, or a GGUF file there. Raises BadBackbone."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        make_tokenizer: Any = AutoTokenizer.from_pretrained
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        kind, folder = "language model", name
        own_file: dict[str, Any] = {}
        if name in cls.bundled:
            folder, style = _weights.bundled(name), style or packaged_models.MODELS[name].style
        if gguf_file is None:
            _folders.check_weights(Path(folder))
        else:
            own_file = gguf.options_of_model(folder, gguf_file, revision)
            name = gguf.joined(folder, gguf_file)
            options["gguf_file"] = gguf_file
        with _folders.load_errors(name, kind, "its configuration or weights"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                **{**options, **own_file},
            )
            model, info = loaded
            _folders.missing_weights(name, info["missing_keys"])
        with _folders.load_errors(name, kind, "its tokenizer"):
            tokenizer = make_tokenizer(folder, **options)
        model.requires_grad_(False)
        gguf.make_dense(model)
        if device is not None:
            model = model.to(device)
        commit = getattr(model.config, "_commit_hash", None)
        source = _weights.folder(folder, revision, commit, gguf_file or "config.json")
        chosen = _tokens.style_of(tokenizer, style, name)
        with _folders.load_errors(name, kind, "its parts do not fit together and"):
            backbone = cls(
                model,
                tokenizer,
                name=name,
                revision=revision or "",
                style=chosen,
                source=source,
                gguf_file=gguf_file or "",
            )
            backbone.check_prompts()
        return backbone

    @classmethod
    def outline(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> ModelOutline:
        """Configuration and tokenizer of a model whose weights are not loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        make_tokenizer: Any = AutoTokenizer.from_pretrained
        path = _weights.bundled(name) if name in cls.bundled else name
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with _folders.load_errors(name, "language model", "its configuration or tokenizer"):
            model = _weights.on_meta(AutoModelForCausalLM, path, **options)
            tokenizer = make_tokenizer(path, **options)
            sites = _sites.resolve(model).sites
        return _weights.outline_of(name, path, revision, model, sites, tokenizer)

    @classmethod
    def wrap(cls, model: Any, processor: Any, *, name: str = "", style: str | None = None) -> HfLm:
        """Around a model in memory; see `errata.wrap`."""
        gguf.make_dense(model)
        path = str(getattr(model.config, "_name_or_path", "") or "")
        name = name or _weights.short_name(path, cls.bundled) or type(model).__name__
        tokenizer = getattr(processor, "tokenizer", processor)
        if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
            raise BadBackbone(
                f"{name} takes text, and a {type(processor).__name__} makes no tokens of it. Give "
                "the model's tokenizer: AutoTokenizer.from_pretrained(...)."
            )
        source = _weights.folder(path, None, getattr(model.config, "_commit_hash", None))
        chosen = _tokens.style_of(tokenizer, style, name)
        backbone = cls(model, tokenizer, name=name, style=chosen, source=source, trusted=False)
        backbone.check_prompts()
        return backbone

    def check_prompts(self) -> None:
        """Raises BadBackbone if the chat template writes no usable prompts."""
        text = "Which colour has it"
        if self.style == "chat" and text not in self.formatted(Prompt((text,))):
            raise BadBackbone(
                f"the chat template of {self.name} changes the text of a question. Load the model "
                "with --style raw or easyedit."
            )

    @property
    def special(self) -> bool:
        """A chat template writes the special tokens itself."""
        return self.style != "chat"

    def formatted(self, prompt: Prompt) -> str:
        """The text for the tokenizer."""
        if self.style == "chat":
            return _tokens.in_chat(self.tokenizer, prompt, self.name, parts=False)
        self.check_no_turns(prompt)
        return _tokens.in_easyedit(prompt.text) if self.style == "easyedit" else prompt.text

    def processed(self, prompt: Prompt) -> dict[str, Any]:
        """The output of the model's own tokenizer."""
        text = self.formatted(prompt)
        output = self.tokenizer([text], return_tensors="pt", add_special_tokens=self.special)
        return {k: output[k] for k in ("input_ids", "attention_mask")}
