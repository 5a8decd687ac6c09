"""Any `AutoModelForImageTextToText` of transformers: LLaVA, BLIP-2, Qwen-VL, InternVL, Gemma, ...

One file for all of them: sites are found by structure (`_sites`), the forward machinery is shared
(`_trunk`), and what a processor does to text and images is learnt from the processor itself.
`micro-vlm`, the bundled model, is an ordinary LLaVA checkpoint in a folder of the package.
"""

from __future__ import annotations

import inspect
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.backbones import _sites, _stored, _tokens
from errata.backbones._trunk import TrunkBackbone
from errata.core.backbone import Batch, Heads
from errata.core.errors import BadBackbone, BadEdit, BadSpec, TooLong
from errata.core.images import load_image
from errata.core.ports import Wires
from errata.core.types import Image, Prompt

Style = Literal["raw", "easyedit", "chat"]


class HfVlm(TrunkBackbone):
    """A vision-language model on the ordinary transformers classes."""

    bundled: ClassVar[Mapping[str, str]] = {"micro-vlm": "microworld"}
    capabilities = frozenset({"text", "image", "generate", "resume"})

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "",
        revision: str = "",
        style: Style = "raw",
        source: Path | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.name = name or type(model).__name__
        self.revision = revision
        self.style: Style = style
        self.source = source
        self.layout = _sites.resolve(model)
        self.text, self.blocks, self.head = self.layout.text, self.layout.blocks, self.layout.head
        self.tower, self.bridge_in_tower = self.layout.tower, self.layout.bridge_in_tower
        self.wires = Wires.of(model, lambda _: self.layout.sites)
        self.text_config = model.config.get_text_config()
        self.softcap = getattr(self.text_config, "final_logit_softcapping", None)
        image_id = getattr(model.config, "image_token_id", None) or getattr(
            model.config, "image_token_index", None
        )
        if image_id is None:
            raise BadBackbone(
                f"{self.name}: its config names no image token (image_token_id). "
                "Is it a vision model?"
            )
        self.image_id = int(image_id)
        self.image_token = self._placeholder()
        self.placeholder_id = int(self.tokenizer.convert_tokens_to_ids(self.image_token))
        self.markup = self._markup()
        self.marks = _tokens.marks(self.tokenizer, model.config, self.image_token)
        self.stops = _tokens.stops(self.tokenizer, model)
        self._seen: OrderedDict[str, _tokens.Seen] = OrderedDict()
        self._tokens: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._fingerprint = ""

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
        )

        return config.get("model_type") in NAMES

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        style: Style = "raw",
        trust_remote_code: bool = False,
    ) -> HfVlm:
        """A bundled name, a folder or a hub id. Raises BadBackbone with the library's reason."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        make_processor: Any = AutoProcessor.from_pretrained
        path = _bundled(name) if name in cls.bundled else name
        if name in cls.bundled and dtype == "auto":
            dtype = "float32"
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, device_map=device_map, **options
            )
            processor = make_processor(path, **options)
        except (OSError, ValueError, ImportError) as e:
            reason = str(e).strip().splitlines()[0]
            raise BadBackbone(
                f"cannot load '{name}' as a vision-language model: {reason} Give a bundled name "
                f"({', '.join(cls.bundled)}), a folder with config.json, or a hub id (offline: "
                "download it first)."
            ) from None
        if device is not None:
            model = model.to(device)
        commit = getattr(model.config, "_commit_hash", None)
        source = _stored.folder(path, revision, commit)
        return cls(model, processor, name=name, revision=revision or "", style=style, source=source)

    def forget(self) -> None:
        """Drops prepared images and tokenised texts; they are made again when needed."""
        self._seen.clear()
        self._tokens.clear()

    @property
    def width(self) -> int:
        return int(self.text_config.hidden_size)

    @property
    def context(self) -> int:
        return int(getattr(self.text_config, "max_position_embeddings", 0) or 10**9)

    def activation(self, site: str) -> str:
        name = getattr(self.text_config, "hidden_act", None) or self.text_config.activation_function
        known = {
            "silu": "silu",
            "swish": "silu",
            "relu": "relu",
            "gelu": "gelu",
            "gelu_pytorch_tanh": "gelu_tanh",
            "gelu_new": "gelu_tanh",
        }
        if name not in known:
            raise BadBackbone(
                f"{self.name}: neurons cannot imitate the activation '{name}'. "
                f"Known: {', '.join(known)}."
            )
        return known[name]

    def heads(self, layer: int) -> Heads:
        for part in ("norm", "q", "k", "v", "o"):
            if f"text.{layer}.attn.{part}" not in self.wires.sites:
                raise BadBackbone(
                    f"{self.name}: block {layer} has no separate attention '{part}', which a "
                    "memory mixed into it needs. Use a model with q, k, v and o projections."
                )
        attention: Any = self.site(f"text.{layer}.attn").first
        size = int(attention.head_dim)
        queries, keys = (self.weight(f"text.{layer}.attn.{p}")[1] // size for p in ("q", "k"))
        if self.weight(f"text.{layer}.attn.o")[0] != queries * size:
            raise BadBackbone(
                f"{self.name}: the queries of block {layer} are not as wide as what its heads put "
                "out (gated queries). A memory cannot be mixed into this attention."
            )
        return Heads(queries, keys, size, float(getattr(attention, "scaling", size**-0.5)))

    def fingerprint(self) -> str:
        """Over stored tensors where there are files, so that the load dtype does not change it."""
        if not self._fingerprint:
            config: Any = self.model.config
            self._fingerprint = _stored.fingerprint(config.to_dict(), self.model, self.source)
        return self._fingerprint

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # -- prompts to tensors -------------------------------------------------------------------

    def shown(self, prompt: Prompt) -> str:
        """The text put to the tokenizer, with one image token per image."""
        if self.style == "chat":
            content = [
                {"type": "image"} if isinstance(s, Image) else {"type": "text", "text": s}
                for s in prompt.segments
            ]
            message = [{"role": "user", "content": content}]
            if getattr(self.processor, "chat_template", None) is None:
                raise BadSpec(f"{self.name} has no chat template. Use --style raw or easyedit.")
            return str(
                self.processor.apply_chat_template(
                    message, add_generation_prompt=True, tokenize=False
                )
            )
        parts = []
        for segment in prompt.segments:
            if isinstance(segment, Image):
                parts.append(self.markup)
            else:
                parts.append(
                    f"Question: {segment} Short answer:" if self.style == "easyedit" else segment
                )
        return "".join(parts)

    def _placeholder(self) -> str:
        """What the processor replaces by an image's tokens; most often the image token itself."""
        image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_id))
        given = str(getattr(self.processor, "image_token", None) or image_token)
        unknown = (None, getattr(self.tokenizer, "unk_token_id", None))
        return image_token if self.tokenizer.convert_tokens_to_ids(given) in unknown else given

    def _markup(self) -> str:
        """What stands for an image: one placeholder, wrapped as the family's config says."""
        config = self.model.config
        ends = [getattr(config, f"vision_{e}_token_id", None) for e in ("start", "end")]
        if None not in ends:
            start, end = self.tokenizer.convert_ids_to_tokens(ends)
            return f"{start}{self.image_token}{end}"
        if self._image_before_bos or self.placeholder_id != self.image_id:
            return self.image_token
        return f"{self.image_token}\n"

    @property
    def _image_before_bos(self) -> bool:
        """BLIP-2's processor puts its query tokens in front of the text's own BOS."""
        return hasattr(self.processor, "num_query_tokens")

    def processed(self, prompt: Prompt) -> dict[str, Tensor]:
        """What the family's own processor makes of a prompt: keywords of the model's forward."""
        shown = self.shown(prompt)
        if self._image_before_bos:
            shown = shown.replace(self.image_token, "")
        images = [load_image(i) for i in prompt.images]
        options: dict[str, Any] = {"images": images} if images else {}
        if self.style == "chat":
            options["add_special_tokens"] = False
        process = self.processor if images else self.tokenizer
        made = process(text=[shown], return_tensors="pt", **options)
        return {k: v for k, v in made.items() if images or k in ("input_ids", "attention_mask")}

    def _image(self, image: Image) -> tuple[str, _tokens.Seen]:
        """The image's key, and what the processor makes of it."""
        key = _tokens.image_key(image)
        if key not in self._seen:
            before = self._image_before_bos
            text = "" if before else self.markup
            parameters = inspect.signature(self.model.forward).parameters
            self._seen[key] = _tokens.see(
                image,
                lambda picture: self.processor(text=[text], images=[picture], return_tensors="pt"),
                name=self.name,
                markup=self.markup,
                plain=() if before else self._ids(text, True),
                placeholder=self.placeholder_id,
                image_id=self.image_id,
                takes=parameters.__contains__,
            )
            if len(self._seen) > 512:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return key, self._seen[key]

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        key = (text, special)
        if key not in self._tokens:
            if len(self._tokens) > 100_000:
                self._tokens.clear()
            self._tokens[key] = tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        return self._tokens[key]

    def _prompt_ids(self, text: str, images: Sequence[_tokens.Seen]) -> tuple[int, ...]:
        special = self.style != "chat"
        if self._image_before_bos and images:
            front = tuple(i for seen in images for i in seen.ids)
            return front + self._ids(text.replace(self.image_token, ""), special)
        ids: list[int] = []
        left = list(images)
        for token in self._ids(text, special):
            ids.extend(left.pop(0).ids if token == self.placeholder_id else (token,))
        assert not left, f"{self.name}: a prompt's text shows fewer images than the prompt has"
        return tuple(ids)

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """One space in front of the stripped text, none after a prompt ending in white space."""
        text = text.strip()
        if not text:
            return ()
        _tokens.check_text(text, self.marks, f"the answer '{text[:60]}'")
        shown = self.shown(prompt)
        glue = "" if shown[-1:].isspace() else " "
        special = self.style != "chat"
        before, joint = self._ids(shown, special), self._ids(shown + glue + text, special)
        if joint[: len(before)] == before:
            return joint[len(before) :]
        return self._ids(glue + text, False)

    def encode(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str] | None = None,
        *,
        eos: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Batch:
        """As declared; raises BadEdit or BadImage for a row that cannot be put to the model."""
        assert prompts, "encode was given no prompts"
        rows = rows if rows is not None else range(len(prompts))
        shown = tuple(self.rewritten(p, r) for p, r in zip(prompts, rows, strict=True))
        for p in shown:
            _tokens.check_text(p.text, self.marks, f"prompt '{p.text[:60]}'")
        images = [(b, *self._image(i)) for b, p in enumerate(shown) for i in p.images]
        ids = [
            list(self._prompt_ids(self.shown(p), [seen for r, _, seen in images if r == b]))
            for b, p in enumerate(shown)
        ]
        if not all(ids):
            raise BadEdit(f"prompt {ids.index([])} of {len(ids)} is empty. Give it a text.")
        lengths = [len(i) for i in ids]
        end = [int(self.tokenizer.eos_token_id)] if eos else []
        ends = tuple(
            (*self.answer_ids(t, p), *end) if t.strip() else ()
            for t, p in zip(targets or [""] * len(ids), shown, strict=True)
        )
        for b, (i, e) in enumerate(zip(ids, ends, strict=True)):
            if len(i) + len(e) > self.context:
                raise TooLong(
                    f"prompt '{shown[b].text[:60]}' and its target need {len(i) + len(e)} tokens, "
                    f"{self.name} takes {self.context}. Shorten the prompt or the target."
                )
            i.extend(e)
        return self._batch(shown, ids, lengths, ends, images)

    def _batch(
        self,
        shown: tuple[Prompt, ...],
        ids: list[list[int]],
        lengths: list[int],
        ends: tuple[tuple[int, ...], ...],
        images: list[tuple[int, str, _tokens.Seen]],
    ) -> Batch:
        """`images`: (row, key, tensors) of each image, in the order of the rows."""
        device = self.device_of("embed")
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        pad = int(pad if pad is not None else self.tokenizer.eos_token_id)
        padded = torch.tensor([i + [pad] * (longest - len(i)) for i in ids], device=device)
        columns = torch.arange(longest, device=device)
        mask = (columns < torch.tensor([len(i) for i in ids], device=device)[:, None]).long()
        vision = (padded == self.image_id) & (mask == 1)
        inputs: dict[str, Tensor] = {"input_ids": padded, "attention_mask": mask}
        made = [seen for _, _, seen in images]
        for key in made[0].tensors if made else ():
            joined = torch.cat([seen.tensors[key] for seen in made]).to(device)
            inputs[key] = joined.to(self.dtype) if joined.is_floating_point() else joined
        for key in made[0].types if made else ():
            inputs[key] = vision.to(torch.int if key == "mm_token_type_ids" else torch.long)
        return Batch(
            prompts=shown,
            inputs=inputs,
            lengths=torch.tensor(lengths, device=device),
            vision=vision,
            image_rows=torch.tensor([b for b, _, _ in images], dtype=torch.long),
            image_sizes=torch.tensor([seen.count for seen in made], dtype=torch.long),
            image_keys=tuple(key for _, key, _ in images),
            targets=ends,
        )


def _bundled(name: str) -> str:
    folder = files("errata") / "assets" / name
    if not folder.is_dir():
        raise BadBackbone(
            f"the bundled model '{name}' is not in this installation. Install errata again."
        )
    return os.fspath(Path(str(folder)))
