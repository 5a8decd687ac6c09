"""A text model behind a tokenizer: prompts and targets as token ids, and what its config says.

Families add what stands in a prompt besides text: `shown` and `_prompt_ids` say how it reads, and
`_image` what the model takes of a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.backbones import _tokens, _weights
from errata.backbones._decoder import DecoderBackbone
from errata.core.errors import BadBackbone, BadEdit, BadImage, TooLong
from errata.core.model.batch import Batch, Heads
from errata.core.state import State
from errata.core.types import Image, Prompt
from errata.io import states

_LONG = 4000  # characters from which on a text's tokens are not kept


class TextBackbone(DecoderBackbone):
    """Implements prompts over `tokenizer` and `text_config`, which subclasses set.

    `special`: whether the tokenizer adds its own tokens to a prompt. `marks`: what a text may not
    hold. `image_id`: the id that image tokens have, -1 for none.
    """

    tokenizer: Any
    text_config: Any
    source: Path | None = None
    special: bool = True
    marks: tuple[str, ...] = ()
    image_id: int = -1

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._fingerprint = ""

    def forget(self) -> None:
        """Drops tokenised texts; they are made again when needed."""
        self._tokens.clear()

    @property
    def width(self) -> int:
        return int(self.text_config.hidden_size)

    def shipped_states(self, editor: str) -> Iterator[State]:
        return states.shipped(editor, self.fingerprint())

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
            if f"text.{layer}.attn.{part}" not in self.hooks.sites:
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
            self._fingerprint = _weights.fingerprint(config.to_dict(), self.model, self.source)
        return self._fingerprint

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # -- prompts to tensors -------------------------------------------------------------------

    def shown(self, prompt: Prompt) -> str:
        """The text put to the tokenizer."""
        return prompt.text

    def _image(self, image: Image) -> tuple[str, _tokens.EncodedImage]:
        """The image's key, and what the model takes of it. Raises BadImage."""
        raise BadImage(f"{self.name} takes no images, but {image.uri[:200]!r} was given.")

    def _prompt_ids(self, text: str, images: Sequence[_tokens.EncodedImage]) -> tuple[int, ...]:
        """Ids of a shown text, with those of its images in their places."""
        return self._ids(text, self.special)

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        key = (text, special)
        if len(text) > _LONG:  # documents of a corpus, each seen once
            return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if key not in self._tokens:
            if len(self._tokens) > 100_000:
                self._tokens.clear()
            self._tokens[key] = tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        return self._tokens[key]

    def last_column(self, prompt: Prompt, span: str) -> int:
        text, end = self.shown(prompt), self._end(prompt, span.strip())
        return self._column(text, end, [self._image(i)[1] for i in prompt.images])

    def _end(self, prompt: Prompt, span: str) -> int:
        """Where the last mention of `span` ends in the shown text, found by a mark behind it."""
        texts = [(i, s) for i, s in enumerate(prompt.segments) if isinstance(s, str)]
        whole = re.compile(rf"(?<!\w){re.escape(span)}(?!\w)")
        found = [(i, m.end()) for i, s in texts for m in whole.finditer(s)]
        found = found or [(i, s.rfind(span) + len(span)) for i, s in texts if span in s]
        if not span or not found:
            raise BadEdit(
                f"the subject '{span[:60]}' is not in the prompt '{prompt.text[:60]}'. Give it as "
                "it stands there, or edit at the prompt's last token: --set token=last_prompt."
            )
        segment, end = found[-1]
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in prompt.text)
        parts = list(prompt.segments)
        before = str(parts[segment])
        parts[segment] = before[:end] + mark + before[end:]
        marked = self.shown(Prompt(tuple(parts)))
        assert marked.replace(mark, "", 1) == self.shown(prompt), "the mark changed the prompt"
        return marked.index(mark)

    def _column(self, text: str, end: int, images: Sequence[_tokens.EncodedImage]) -> int:
        """The column of the token that holds the last character before `end` of a shown text."""
        return self._token(text, end)

    def _token(self, text: str, end: int) -> int:
        """As `_column`, among the tokens of the text alone."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise BadBackbone(
                f"the tokenizer of {self.name} does not say where its tokens are in a text. Edit "
                "at the prompt's last token: --set token=last_prompt."
            )
        made = self.tokenizer(text, add_special_tokens=self.special, return_offsets_mapping=True)
        holds = [t for t, (a, b) in enumerate(made["offset_mapping"]) if a < end <= b]
        assert holds, f"no token of {self.name} holds character {end - 1} of {text!r}"
        return holds[-1]

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """One space in front of the stripped text, none after a prompt ending in white space."""
        text = text.strip()
        if not text:
            return ()
        _tokens.check_text(text, self.marks, f"the answer '{text[:60]}'")
        shown = self.shown(prompt)
        glue = "" if shown[-1:].isspace() else " "
        before, joint = (self._ids(t, self.special) for t in (shown, shown + glue + text))
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
        images: list[tuple[int, str, _tokens.EncodedImage]],
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
