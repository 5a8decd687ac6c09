"""Makes a folder of transformers from the published files of MiniGPT-4.

Everything is checked by name and shape before the first byte is written: every parameter of the
model is filled, and every published name is known. Weights are copied a few at a time, into a
hidden folder, which takes its place when it is whole.

Source: the layout of Vision-CAIR/MiniGPT-4 at d94738a and of LAVIS; see `names`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from errata.backbones import _folders
from errata.backbones.minigpt4 import PART, names
from errata.backbones.minigpt4.files import Source, is_finite, published, text_model
from errata.core import files
from errata.core.errors import BadBackbone, BadOutput, BadSpec, DiskFull

#: bytes of a weight file; a larger tensor has a file of its own
SHARD = 1 << 31
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_TEXT = "language_model."
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: buffers that old versions of transformers stored
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
#: files of a converted model
_WRITTEN = re.compile(
    r"((generation_|processor_|preprocessor_|tokenizer_)?config|tokenizer|vocab|added_tokens"
    r"|special_tokens_map|model\.safetensors\.index)\.json|chat_template\.jinja|merges\.txt"
    r"|tokenizer\.model|model-\d+-of-\d+\.safetensors"
)
#: as published: the image between tags, the question behind it, a turn ends at ###
TEMPLATE = (
    "{% for message in messages %}###{{ 'Human: ' if message.role == 'user' else 'Assistant: ' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<Img><image></Img> "
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}###Assistant: {% endif %}"
)


@dataclass(frozen=True)
class Published:
    """Where the parts of MiniGPT-4 are: three files, and the folder of its text model."""

    vit: Path
    qformer: Path
    checkpoint: Path
    vicuna: Path


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    blocks: tuple[int, int, int]
    """Of the tower, the Q-Former and the text model."""
    parameters: int
    dtype: str


@dataclass(frozen=True)
class _Entry:
    """A tensor to be written. parts: what it is made of by `make`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Source, ...]
    make: Callable[[Sequence[Tensor]], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def value(self) -> Tensor:
        """Raises BadBackbone for NaN or infinite numbers, also if the dtype makes them."""
        value = self.make([part.value() for part in self.parts]).to(self.dtype).contiguous()
        if not is_finite(value):
            raise BadBackbone(
                f"{self.parts[0].where}: {self.parts[0].key} has numbers that {self.dtype} cannot "
                "hold. Convert with --dtype float32."
            )
        return value


def convert(
    parts: Published,
    out: Path,
    *,
    dtype: str = "auto",
    vit_heads: int | None = None,
    qformer_heads: int | None = None,
    force: bool = False,
    shard: int = SHARD,
    progress: Callable[[str, int, int], None] | None = None,
) -> Converted:
    """Writes the model that the published parts make to the folder `out`.

    dtype: of the weights; auto: that of the text model. The Q-Former stays in float32 beside
    float16, as transformers runs it. vit_heads, qformer_heads: for other sizes than the published
    ones. force: replace a converted model. shard: bytes of a weight file. Raises BadBackbone for
    parts that are damaged or do not fit together, BadOutput and DiskFull for the folder.
    """
    if dtype not in _DTYPES:
        raise BadSpec(f"unknown dtype '{dtype}'. Known: {', '.join(_DTYPES)}.")
    _check_out(out, parts, force=force)
    sources: dict[str, Source] = {}
    for option in names.FILES:  # a name of a later file replaces that of an earlier one
        sources.update(published(getattr(parts, option), option))
    text, text_sources = text_model(parts.vicuna)
    processor = _processor(parts.vicuna)
    shapes = {name: s.shape for name, s in sources.items()}
    sizes = names.sizes(shapes, vit_heads=vit_heads, qformer_heads=qformer_heads)
    rows = _rows(text_sources, processor.tokenizer, parts.vicuna)
    text.vocab_size, text.tie_word_embeddings = rows, False
    image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token.content)
    config = names.configuration(sizes, text, image_id)
    kind = text_sources[_EMBEDDING].dtype if dtype == "auto" else getattr(torch, dtype)
    config.dtype = config.text_config.dtype = kind
    blocks = int(sizes.vision["num_hidden_layers"])
    entries = [
        *_image_entries(sources, blocks, kind),
        *_text_entries(text_sources, rows, kind),
    ]
    model = _check(entries, config)
    processor.num_query_tokens = sizes.queries
    size = int(sizes.vision["image_size"])
    processor.image_processor.size = {"height": size, "width": size}
    _check_space(out, sum(e.size for e in entries))
    with files.new_folder(out) as folder:
        _write(folder, entries, shard, progress)
        with files.writing(folder):
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            processor.save_pretrained(folder)
    return Converted(
        out,
        (blocks, int(sizes.qformer["num_hidden_layers"]), int(text.num_hidden_layers)),
        sum(torch.Size(e.shape).numel() for e in entries),
        str(kind).removeprefix("torch."),
    )


# -- what is written -------------------------------------------------------------------------------


def _image_entries(
    sources: Mapping[str, Source], blocks: int, dtype: torch.dtype
) -> Iterator[_Entry]:
    """Tower, Q-Former and projection. Raises BadBackbone for a name that is not known."""
    for name, source in sources.items():
        match = names.QKV_BIAS.fullmatch(name)
        target = names.renamed(name)
        if target is None and match is None:
            raise BadBackbone(
                f"{source.where} holds {source.key}, which is no part of MiniGPT-4. Give the "
                "published file."
            )
        if not names.is_used(name, blocks):
            continue
        if match and match[2] == "q":
            value = sources.get(name.replace("q_bias", "v_bias"))
            if value is None:
                raise BadBackbone(f"{source.where} has {source.key}, but no v_bias beside it.")
            shape = (3 * source.shape[0],) if source.shape == value.shape else source.shape
            yield _Entry(names.bias_of(int(match[1])), shape, dtype, (source, value), _joint_bias)
        elif target:
            yield _plain(target, source, _kept(target, dtype))


def _joint_bias(parts: Sequence[Tensor]) -> Tensor:
    """[3d] of q, k and v; keys have no bias."""
    q, v = parts
    return torch.cat([q, torch.zeros_like(q), v])


def _plain(name: str, source: Source, dtype: torch.dtype) -> _Entry:
    return _Entry(name, source.shape, dtype, (source,), lambda parts: parts[0])


def _kept(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor: transformers runs the Q-Former in float32 beside float16."""
    from transformers import Blip2ForConditionalGeneration

    kept = Blip2ForConditionalGeneration._keep_in_fp32_modules or ()
    in_float32 = dtype == torch.float16 and name.partition(".")[0] in kept
    return torch.float32 if in_float32 else dtype


def _text_entries(sources: Mapping[str, Source], rows: int, dtype: torch.dtype) -> Iterator[_Entry]:
    """The text model; the embedding and the head with rows for the image token.

    A row that no text uses is the mean of the others, so that the token is never the best answer.
    """
    head = sources.get(_HEAD, sources[_EMBEDDING])  # tied: written twice
    for key, source in {**sources, _HEAD: head}.items():
        name = f"{_TEXT}{key}"
        if _BUFFER.fullmatch(key):
            continue
        if key not in (_EMBEDDING, _HEAD) or len(source.shape) != 2:
            yield _plain(name, source, dtype)
            continue
        more = rows - source.shape[0]
        shape = (max(rows, source.shape[0]), source.shape[1])
        yield _Entry(name, shape, dtype, (source,), lambda p, more=more: _grown(p[0], more))  # type: ignore[misc]


def _grown(table: Tensor, more: int) -> Tensor:
    """[V, h] -> [V + more, h]."""
    if more < 1:
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(more, -1)])


def _rows(sources: Mapping[str, Source], tokenizer: Any, folder: Path) -> int:
    """Rows of the embedding: enough for the tokenizer, whose last token is the image token."""
    if _EMBEDDING not in sources:
        raise BadBackbone(f"{folder} has no {_EMBEDDING}. Download the whole model.")
    stored = sources[_EMBEDDING].shape[0]
    if stored < tokenizer.vocab_size:
        raise BadBackbone(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} tokens, but the model has "
            f"{stored} embeddings: they do not belong together. Download the model again."
        )
    return max(stored, len(tokenizer))


def _check(entries: Sequence[_Entry], config: Any) -> Any:
    """The model without weights. Raises BadBackbone unless each parameter is filled, by its shape.

    `entries` must also hold no tensor that the model lacks, and floating-point numbers only.
    """
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model: Any = Blip2ForConditionalGeneration(config)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for e in entries:
        key, where = e.parts[0].key, e.parts[0].where
        wanted = expected.get(e.name)
        if wanted is None:
            raise BadBackbone(
                f"{where} holds {key}, which the model has no place for. Give the published file."
            )
        if e.shape != wanted:
            raise BadBackbone(
                f"{where}: {key} has the shape {list(e.parts[0].shape)}, but the model that these "
                f"files make needs {list(wanted)} for {e.name}. The files do not belong together."
            )
        if not all(part.dtype.is_floating_point for part in e.parts):
            raise BadBackbone(f"{where}: {key} holds {e.parts[0].dtype}, not floats.")
    missing = sorted(set(expected) - {e.name for e in entries})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadBackbone(
            f"no file holds the weights of {missing[0]}{more}. Download the files again."
        )
    return model


def _processor(folder: Path) -> Any:
    """The processor: 224 x 224 pixels by bicubic scaling, CLIP's mean and deviation, `<image>`."""
    from transformers import AutoTokenizer, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    with _folders.load_errors(str(folder), "text model", "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        make: Any = Blip2Processor
        return make(BlipImageProcessorPil(), tokenizer)


# -- writing ---------------------------------------------------------------------------------------


def _check_out(out: Path, parts: Published, *, force: bool) -> None:
    """Raises BadOutput unless the folder can be written; a converted model only with `force`."""
    files.check_folder(out)
    found = files.visible(out)
    if not found:
        return
    inside = [p for p in vars(parts).values() if p.resolve().is_relative_to(out.resolve())]
    if inside:
        raise BadOutput(f"{out} holds {inside[0]}, which is converted. Choose another --out.")
    config = out / "config.json"
    other = [name for name in found if not _WRITTEN.fullmatch(name)]
    if other or not config.is_file() or PART not in _folders.read_object(config):
        what = f"holds {other[0]}, which is no part of a" if other else "is not empty and holds no"
        raise BadOutput(f"{out} {what} converted model. Choose another --out.")
    if not force:
        raise BadOutput(
            f"{out} holds a converted model. Give --force to replace it, or choose another --out."
        )


def _check_space(out: Path, needed: int) -> None:
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskFull(
            f"the model needs {needed / 2**30:.1f} GiB, and {place} has {free / 2**30:.1f} GiB "
            "free. Free some space or choose another --out."
        )


def _write(
    folder: Path,
    entries: Sequence[_Entry],
    shard: int,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """The weight files and their index."""
    groups: list[list[_Entry]] = []
    room = 0
    for e in entries:
        if not groups or e.size > room:
            groups.append([])
            room = shard
        groups[-1].append(e)
        room -= e.size
    where = {}
    for n, group in enumerate(groups, 1):
        name = f"model-{n:05}-of-{len(groups):05}.safetensors"
        with files.writing(folder / name):
            save_file({e.name: e.value() for e in group}, folder / name, {"format": "pt"})
        where.update({e.name: name for e in group})
        if progress:
            progress("weight files", n, len(groups))
    index = {"metadata": {"total_size": sum(e.size for e in entries)}, "weight_map": where}
    files.write_json(folder / "model.safetensors.index.json", index)
