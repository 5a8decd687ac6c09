"""A text model behind a tokenizer: prompts and targets as token ids, and what its config says.

Families that take images override three methods: `formatted` and `_prompt_ids` put an image's
placeholder and token ids into the prompt, and `_image` encodes an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.backbones import _tokens, _weights
from errata.backbones._decoder import DecoderBackbone
from errata.backbones._identity import ModelIdentity
from errata.backbones._language.activations import activation_between, activation_of
from errata.backbones._text_blocks import cross
from errata.core.errors import BadBackbone, BadEdit, BadImage, TooLong
from errata.core.model.batch import Batch, Heads
from errata.core.state import State
from errata.core.types import Edit, Image, Prompt
from errata.io import images, states
from errata.patches.neurons import ACTIVATIONS

#: what configurations call the longest sequence
_CONTEXT = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
_LONG = 4000  # the tokens of a text of more characters are not cached


class TextBackbone(DecoderBackbone):
    """Implements prompts over `tokenizer` and `text_config`, which subclasses set.

    image_markers: tokens that a text must not contain. image_id: the id of image tokens, -1 for
    none. target_types: keywords of the forward that are 1 at targets and 0 over a prompt.
    """

    tokenizer: Any
    text_config: Any
    _identity: ModelIdentity | None = None
    _former: str = ""
    image_markers: tuple[str, ...] = ()
    image_id: int = -1
    target_types: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, bool], tuple[int, ...]] = {}

    def identify(
        self, processor: Any, source: Path | None, *, trusted: bool = True, gguf_file: str = ""
    ) -> None:
        """Remembers what the model is now; subclasses call it at the end of `__init__`.

        Else the first fingerprint does, and earlier changes are not seen. source: the folder of its
        weight files. trusted: it was loaded from there. gguf_file: the file there with the weights.
        """
        self.source = None if gguf_file else source
        stored = _weights.Stored(self.model, source, trusted=trusted, gguf_file=gguf_file)
        self._identity = ModelIdentity(self.model, processor, self.tokenizer, stored)

    @property
    def identity(self) -> ModelIdentity:
        """The fingerprint, and whether the model is still the same."""
        if self._identity is None:
            self.identify(self.tokenizer, self.source)
        assert self._identity is not None
        return self._identity

    def forget(self) -> None:
        """Clears the caches: of tokenised texts, and of the fingerprint."""
        self._tokens.clear()
        self.identity.forget()

    @property
    def special(self) -> bool:
        """Whether the tokenizer adds special tokens to a prompt."""
        return True

    def special_in(self, pictures: bool) -> bool:
        """As `special`, for the formatted text of a prompt with or without pictures."""
        return self.special

    @property
    def width(self) -> int:
        return int(self.text_config.hidden_size)

    def shipped_states(self, editor: str) -> Iterator[State]:
        return states.shipped(editor, self.identified_by)

    @property
    def context(self) -> int:
        lengths = (getattr(self.text_config, name, 0) for name in _CONTEXT)
        return int(next((n for n in lengths if n), 10**9))

    def activation(self, site: str) -> str:
        block = self.blocks[self.block_of(site)]
        name, own = activation_of(iter((self.site(site).first, block)), self.text_config)
        name = name or self._activation_inside(f"text.{self.block_of(site)}.mlp")
        if not name:
            raise BadBackbone(
                f"{self.name}: errata has no neurons with the activation '{own}'. "
                f"Known: {', '.join(ACTIVATIONS)}."
            )
        return name

    def _activation_inside(self, mlp: str) -> str:
        """The activation that a gated FFN's own forward computes; "" if that cannot be seen."""
        run = {part: f"{mlp}{part}" for part in ("", ".up", ".gate", ".down")}
        if any(site not in self.hooks.sites for site in run.values()):
            return ""
        x_NTd = torch.randn(1, 16, self.width, generator=torch.Generator().manual_seed(0))
        x_NTd = x_NTd.to(self.device_of(mlp), self.dtype)
        with torch.no_grad():
            y, up, gate = (self.hooks.call(run[part], x_NTd) for part in ("", ".up", ".gate"))
            return activation_between(
                gate, y, lambda a: self.hooks.call(run[".down"], (a * up).to(up.dtype))
            )

    def _separate(self, layer: int) -> bool:
        at = f"text.{layer}.attn"
        if any(f"{at}.{part}" not in self.hooks.sites for part in ("q", "k", "v", "o")):
            return False
        return self.weight(f"{at}.q")[1] == self.weight(f"{at}.o")[0]  # no gated queries

    def heads(self, layer: int) -> Heads:
        at = f"text.{layer}.attn"
        for part in ("q", "k", "v", "o"):
            if f"{at}.{part}" not in self.hooks.sites:
                others = [str(i) for i in range(self.depth) if self._separate(i)]
                use = f"blocks that have it ({', '.join(others)})" if others else "another model"
                raise BadBackbone(
                    f"{self.name}: block {layer} has no separate attention '{part}', which a "
                    f"memory mixed into it needs. Use {use}."
                )
        attention: Any = self.site(at).first
        norms = [n for n, _ in self.blocks[layer].named_children() if "norm" in n]
        behind = all(n.startswith("post_") for n in norms)  # and none in front of the attention
        unknown = not hasattr(attention, "head_dim") or any(
            "norm" in n and not hasattr(m, "weight") and list(m.parameters())
            for n, m in attention.named_children()
        )
        if unknown or not (behind or f"{at}.norm" in self.hooks.sites):
            raise BadBackbone(
                f"{self.name}: errata does not know the widths and norms of the attention of block "
                f"{layer}, which a memory mixed into it needs. Use a model of another family."
            )
        size = int(attention.head_dim)
        queries, keys = (self.weight(f"text.{layer}.attn.{p}")[1] // size for p in ("q", "k"))
        if self.weight(f"text.{layer}.attn.o")[0] != queries * size:
            raise BadBackbone(
                f"{self.name}: the queries of block {layer} are not as wide as the output of its "
                "heads (gated queries). A memory cannot be mixed into this attention."
            )
        return Heads(queries, keys, size, float(getattr(attention, "scaling", size**-0.5)))

    def fingerprint(self) -> str:
        """Over weights, configuration, processing and tokenizer, as they are now (`_identity`)."""
        return self.identity.fingerprint()

    def former_fingerprint(self) -> str:
        if not self.identity.as_loaded():
            return ""
        if not self._former:
            config: Any = self.model.config
            self._former = _weights.former_fingerprint(config.to_dict(), self.model, self.source)
        return self._former

    def as_loaded(self) -> bool:
        return self.identity.as_loaded()

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # -- prompts to tensors -------------------------------------------------------------------

    def formatted(self, prompt: Prompt) -> str:
        """The text for the tokenizer."""
        self.check_no_turns(prompt)
        return prompt.text

    def check_turns(self) -> None:
        _tokens.check_turns(self.tokenizer, self.style, self.name)

    def check_no_turns(self, prompt: Prompt) -> None:
        """Raises BadEdit for a prompt with a history."""
        if prompt.history:
            self.check_turns()
            raise BadEdit(f"{self.name} takes one question here. Ask without earlier turns.")

    def _image(self, image: Image) -> tuple[str, _tokens.EncodedImage]:
        """(the image's key, its encoding). Raises BadImage."""
        raise BadImage(f"{self.name} takes no images, but {image.shown[:200]!r} was given.")

    def _prompt_ids(self, text: str, images: Sequence[_tokens.EncodedImage]) -> tuple[int, ...]:
        """Ids of a formatted prompt, with the ids of its images in place of their placeholders."""
        return self._ids(text, self.special_in(bool(images)))

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        key = (text, special)
        if key in self._tokens:
            return self._tokens[key]
        ids = tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        self._check_ids(ids)
        if len(text) <= _LONG:  # a document of a corpus is used once
            if len(self._tokens) > 100_000:
                self._tokens.clear()
            self._tokens[key] = ids
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raises BadBackbone for a token that the model has no embedding for."""
        rows = self.weight("embed")[1]
        if max(ids, default=0) < rows:
            return
        markers = self.tokenizer.convert_tokens_to_ids(list(self.image_markers))
        unknown = [i for i in ids if i >= rows and i != self.image_id and i not in markers]
        if unknown:
            token = self.tokenizer.convert_ids_to_tokens(unknown[0])
            raise BadBackbone(
                f"the tokenizer of {self.name} has the token {token!r} (number {unknown[0]}), but "
                f"the model has {rows} embeddings. Call model.resize_token_embeddings("
                f"{len(self.tokenizer)}) and wrap the model again, or use the tokenizer that "
                "belongs to it."
            )

    def _image_columns(
        self, ids: Tensor, images: Sequence[tuple[int, str, _tokens.EncodedImage]]
    ) -> Tensor:
        """[B, T] True for image tokens of padded ids; `images` as in `_batch`."""
        return ids == self.image_id

    def hashed(self, edit: Edit) -> Edit:
        return replace(edit, prompt=images.hashed(edit.prompt))

    def last_column(self, prompt: Prompt, span: str) -> int:
        text, end = self.formatted(prompt), self._end(prompt, span.strip())
        return self._column(text, end, [self._image(i)[1] for i in prompt.images])

    def first_column(self, prompt: Prompt, span: str) -> int:
        text, end = self.formatted(prompt), self._end(prompt, span.strip())
        start = end - len(span.strip())
        return self._column(text, start + 1, [self._image(i)[1] for i in prompt.images])

    def _end(self, prompt: Prompt, span: str) -> int:
        """Where the last `span` ends in the formatted prompt, found by a marker put after it."""
        texts = [(i, s) for i, s in enumerate(prompt.segments) if isinstance(s, str)]
        whole = re.compile(rf"(?<!\w){re.escape(span)}(?!\w)")
        ends = [(i, m.end()) for i, s in texts for m in whole.finditer(s)]
        ends = ends or [(i, s.rfind(span) + len(span)) for i, s in texts if span in s]
        if not span or not ends:
            raise BadEdit(
                f"the subject '{span[:60]}' is not in the prompt '{prompt.text[:60]}'. Give it as "
                "it is written there, or edit at the prompt's last token: --set token=last_prompt."
            )
        segment, end = ends[-1]
        marker = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in prompt.text)
        parts = list(prompt.segments)
        before = str(parts[segment])
        parts[segment] = before[:end] + marker + before[end:]
        marked = self.formatted(replace(prompt, segments=tuple(parts)))
        if marked.count(marker) != 1 or marked.replace(marker, "") != self.formatted(prompt):
            raise BadBackbone(
                f"the chat template of {self.name} changes the text of a prompt, so a word in it "
                "cannot be located. Edit at the prompt's last token: --set token=last_prompt."
            )
        return marked.index(marker)

    def _column(self, text: str, end: int, images: Sequence[_tokens.EncodedImage]) -> int:
        """The column of the token that holds the last character before `end` in the text."""
        return self._token(text, end, bool(images))

    def _token(self, text: str, end: int, pictures: bool = False) -> int:
        """As `_column`, without counting image tokens."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise BadBackbone(
                f"the tokenizer of {self.name} gives no token offsets. Edit "
                "at the prompt's last token: --set token=last_prompt."
            )
        special = self.special_in(pictures)
        tokens = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        at_end = [t for t, (a, b) in enumerate(tokens["offset_mapping"]) if a < end <= b]
        assert at_end, f"no token of {self.name} holds character {end - 1} of {text!r}"
        return at_end[-1]

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """One space before the stripped text, none if the prompt ends in white space."""
        text = text.strip()
        if not text:
            return ()
        _tokens.check_text(text, self.image_markers, f"the answer '{text[:60]}'")
        front = self.formatted(prompt)
        space = "" if front[-1:].isspace() else " "
        special = self.special_in(bool(prompt.images))
        before, joint = (self._ids(t, special) for t in (front, front + space + text))
        if joint[: len(before)] == before:
            return joint[len(before) :]
        return self._ids(space + text, False)

    def encode(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str] | None = None,
        *,
        eos: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Batch:
        """As `Backbone.encode`; also raises BadEdit or BadImage, naming the prompt or image."""
        assert prompts, "encode was given no prompts"
        with self.hooks.forward():
            return self._encode(prompts, targets, eos, rows)

    def _encode(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str] | None,
        eos: bool,
        rows: Sequence[int] | None,
    ) -> Batch:
        rows = rows if rows is not None else range(len(prompts))
        rewritten = tuple(self.rewritten(p, r) for p, r in zip(prompts, rows, strict=True))
        for p in rewritten:
            for text in (*(turn.text for turn in p.history), p.text):
                _tokens.check_text(text, self.image_markers, f"prompt '{text[:60]}'")
        images = [(b, *self._image(i)) for b, p in enumerate(rewritten) for i in p.images]
        ids = [
            list(self._prompt_ids(self.formatted(p), [e for r, _, e in images if r == b]))
            for b, p in enumerate(rewritten)
        ]
        if not all(ids):
            raise BadEdit(f"prompt {ids.index([])} of {len(ids)} is empty. Give it a text.")
        lengths = [len(i) for i in ids]
        if eos:
            self._end_token()  # raises at once, also where no target has one
        target_ids = tuple(
            (*self.answer_ids(t, p), *(self.end_of(t, p) if eos else ())) if t.strip() else ()
            for t, p in zip(targets or [""] * len(ids), rewritten, strict=True)
        )
        for b, (i, target) in enumerate(zip(ids, target_ids, strict=True)):
            if len(i) + len(target) > self.context:
                raise TooLong(
                    f"prompt '{rewritten[b].text[:60]}' and its target need "
                    f"{len(i) + len(target)} tokens, {self.name} takes {self.context}. "
                    "Shorten the prompt or the target."
                )
            i.extend(target)
        return self._batch(rewritten, ids, lengths, target_ids, images)

    def end_of(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        """The ids that end the answer `text`, behind `answer_ids`."""
        return (self._end_token(),)

    def _end_token(self) -> int:
        """The id of the token that ends an answer. Raises BadBackbone if none is named."""
        ends = sorted(self.end_ids)
        named = self.tokenizer.eos_token_id
        if named is None and not ends:
            raise BadBackbone(
                f"neither the tokenizer nor the configuration of {self.name} names an end token "
                "(eos_token). Set it: backbone.tokenizer.eos_token = ..., and load the model again."
            )
        return int(named) if named is not None else ends[0]

    def _batch(
        self,
        rewritten: tuple[Prompt, ...],
        ids: list[list[int]],
        lengths: list[int],
        target_ids: tuple[tuple[int, ...], ...],
        images: list[tuple[int, str, _tokens.EncodedImage]],
    ) -> Batch:
        """images: (row, key, encoding) of each image, in the order of the rows."""
        device = self.device_of("embed")
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        pad = int(pad if pad is not None else (self.tokenizer.eos_token_id or 0))
        padded = torch.tensor([i + [pad] * (longest - len(i)) for i in ids], device=device)
        columns = torch.arange(longest, device=device)
        mask = (columns < torch.tensor([len(i) for i in ids], device=device)[:, None]).long()
        vision = self._image_columns(padded, images) & (mask == 1)
        inputs: dict[str, Tensor] = {"input_ids": padded, "attention_mask": mask}
        encoded = [e for _, _, e in images]
        tensors = _tokens.joined(encoded, self.name)
        image_rows = [b for b, _, _ in images]
        image_sizes = [e.size for e in encoded]
        if cross.reads_pictures(self.text):
            vision = torch.zeros_like(vision)
            if tensors:
                tensors = cross.inputs_of(tensors, image_rows, ids, self.image_id)
                most = tensors[cross.MASK].shape[2]
                image_rows = [b for b in range(len(ids)) for _ in range(most)]
                image_sizes = [1] * len(image_rows)
        for key, values in tensors.items():
            values = values.to(device)
            inputs[key] = values.to(self.dtype) if values.is_floating_point() else values
        inputs.update(_tokens.types(images, padded, vision))
        for key in self.target_types:
            inputs[key] = (columns >= torch.tensor(lengths, device=device)[:, None]).long()
        return Batch(
            prompts=rewritten,
            inputs=inputs,
            lengths=torch.tensor(lengths, device=device),
            vision=vision,
            image_rows=torch.tensor(image_rows, dtype=torch.long),
            image_sizes=torch.tensor(image_sizes, dtype=torch.long),
            image_keys=tuple(key for _, key, _ in images),
            targets=target_ids,
        )
