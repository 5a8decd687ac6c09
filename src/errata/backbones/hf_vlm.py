"""Any `AutoModelForImageTextToText` of transformers: LLaVA, BLIP-2, Qwen-VL, InternVL, Gemma, ...

One file for all of them: sites are found by structure (`_sites`), the forward machinery is shared
(`_trunk`), and what a processor does to text and images is learnt from the processor itself.
`micro-vlm`, the bundled model, is an ordinary LLaVA checkpoint in a folder of the package.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from errata.backbones import _sites
from errata.backbones._trunk import TrunkBackbone
from errata.core.backbone import Batch
from errata.core.errors import BadBackbone, BadSpec, TooLong
from errata.core.images import load_image
from errata.core.ports import Wires
from errata.core.types import Image, Prompt

Style = Literal["raw", "easyedit", "chat"]


class HfVlm(TrunkBackbone):
    """A vision-language model on the ordinary transformers classes."""

    bundled: ClassVar[tuple[str, ...]] = ("micro-vlm",)
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
        self.image_token = self.tokenizer.convert_ids_to_tokens(self.image_id)
        self.markup = self._markup()
        self.stops = _stops(self.tokenizer, model)
        self._pixels: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
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
        source = Path(path) if Path(path).is_dir() else None
        return cls(model, processor, name=name, revision=revision or "", style=style, source=source)

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

    def fingerprint(self) -> str:
        """Over stored tensors, so that loading in another dtype does not change it."""
        if not self._fingerprint:
            given: Any = self.model.config
            config = {k: v for k, v in given.to_dict().items() if k not in _VOLATILE}
            h = hashlib.sha256(json.dumps(_stable(config), sort_keys=True, default=str).encode())
            stored = sorted(self.source.glob("*.safetensors")) if self.source else []
            if stored:
                _hash_files(h, stored)
            else:
                _hash_memory(h, self.model)
            self._fingerprint = h.hexdigest()
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

    def _markup(self) -> str:
        """What stands for an image: one image token, wrapped as the family's config says."""
        config = self.model.config
        ends = [getattr(config, f"vision_{e}_token_id", None) for e in ("start", "end")]
        if None not in ends:
            start, end = self.tokenizer.convert_ids_to_tokens(ends)
            return f"{start}{self.image_token}{end}"
        return self.image_token if self._image_before_bos else f"{self.image_token}\n"

    @property
    def _image_before_bos(self) -> bool:
        """BLIP-2's processor puts its query tokens in front of the text's own BOS."""
        return hasattr(self.processor, "num_query_tokens")

    def _image(self, image: Image) -> dict[str, Tensor]:
        """What the processor makes of one image, and how many tokens it takes (`count`)."""
        key = image.uri
        if key in self._pixels:
            self._pixels.move_to_end(key)
            return self._pixels[key]
        text = "" if self._image_before_bos else self.markup
        made = self.processor(text=[text], images=[load_image(image)], return_tensors="pt")
        count = (made["input_ids"][0] == self.image_id).sum()
        skip = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        self._pixels[key] = {**{k: v for k, v in made.items() if k not in skip}, "count": count}
        if len(self._pixels) > 512:
            self._pixels.popitem(last=False)
        return self._pixels[key]

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        key = (text, special)
        if key not in self._tokens:
            if len(self._tokens) > 100_000:
                self._tokens.clear()
            self._tokens[key] = tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        return self._tokens[key]

    def _prompt_ids(self, text: str, counts: Sequence[int]) -> tuple[int, ...]:
        special = self.style != "chat"
        if self._image_before_bos and counts:
            return (self.image_id,) * sum(counts) + self._ids(
                text.replace(self.image_token, ""), special
            )
        ids: list[int] = []
        left = list(counts)
        for token in self._ids(text, special):
            ids.extend([token] * (left.pop(0) if token == self.image_id else 1))
        return tuple(ids)

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """One space in front of the stripped text, none after a prompt ending in white space."""
        text = text.strip()
        if not text:
            return ()
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
        rows = rows if rows is not None else range(len(prompts))
        shown = tuple(self.rewritten(p, r) for p, r in zip(prompts, rows, strict=True))
        images = [(b, i) for b, p in enumerate(shown) for i in p.images]
        made = [self._image(i) for _, i in images]
        counts: list[list[int]] = [[] for _ in shown]
        for (b, _), m in zip(images, made, strict=True):
            counts[b].append(int(m["count"]))
        ids = [list(self._prompt_ids(self.shown(p), c)) for p, c in zip(shown, counts, strict=True)]
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
        return self._batch(shown, ids, lengths, ends, images, made)

    def _batch(
        self,
        shown: tuple[Prompt, ...],
        ids: list[list[int]],
        lengths: list[int],
        ends: tuple[tuple[int, ...], ...],
        images: list[tuple[int, Image]],
        made: list[dict[str, Tensor]],
    ) -> Batch:
        device = self.device_of("embed")
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        pad = int(pad if pad is not None else self.tokenizer.eos_token_id)
        padded = torch.tensor([i + [pad] * (longest - len(i)) for i in ids], device=device)
        columns = torch.arange(longest, device=device)
        mask = (columns < torch.tensor([len(i) for i in ids], device=device)[:, None]).long()
        vision = (padded == self.image_id) & (mask == 1)
        inputs: dict[str, Tensor] = {"input_ids": padded, "attention_mask": mask}
        for key in made[0] if made else ():
            if key != "count":
                joined = torch.cat([m[key] for m in made]).to(device)
                inputs[key] = joined.to(self.dtype) if joined.is_floating_point() else joined
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = vision.int()
        return Batch(
            prompts=shown,
            inputs=inputs,
            lengths=torch.tensor(lengths, device=device),
            vision=vision,
            image_rows=torch.tensor([b for b, _ in images], dtype=torch.long),
            image_sizes=torch.tensor([int(m["count"]) for m in made], dtype=torch.long),
            image_keys=tuple(i.uri for _, i in images),
            targets=ends,
        )


_VOLATILE = (
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "transformers_version",
    "_attn_implementation_autoset",
)


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return value


def _hash_files(h: Any, paths: list[Path]) -> None:
    for path in paths:
        with safe_open(path, framework="pt") as f:
            for key in sorted(f.keys()):
                _hash_tensor(h, key, f.get_tensor(key))


def _hash_memory(h: Any, model: torch.nn.Module) -> None:
    seen: set[int] = set()
    for key, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        _hash_tensor(h, key, tensor)


def _hash_tensor(h: Any, key: str, tensor: Tensor) -> None:
    h.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().flatten()
    for chunk in torch.split(flat.view(torch.uint8), 1 << 26):
        h.update(chunk.numpy().tobytes())


def _stops(tokenizer: Any, model: Any) -> frozenset[int]:
    """Ids that end an answer: every end token, and every token with a line break in it."""
    ends = [tokenizer.eos_token_id, getattr(model.config, "eos_token_id", None)]
    generation = getattr(model, "generation_config", None)
    ends.append(getattr(generation, "eos_token_id", None))
    stops = {
        int(e)
        for group in ends
        if group is not None
        for e in (group if isinstance(group, list) else [group])
    }
    breaks = ("\n", "Ċ", "<0x0A>")
    stops |= {i for token, i in tokenizer.get_vocab().items() if any(b in token for b in breaks)}
    return frozenset(stops)


def _bundled(name: str) -> str:
    folder = files("errata") / "assets" / name
    if not folder.is_dir():
        raise BadBackbone(
            f"the bundled model '{name}' is not in this installation. Install errata again."
        )
    return os.fspath(Path(str(folder)))
