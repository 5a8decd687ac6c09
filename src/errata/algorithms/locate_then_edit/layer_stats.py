"""Uncentred second moments of the inputs of all down projections, in one pass over a corpus.

On request also of the output projections of the attention.

Source: ROME's layer statistics (kmeng01/rome 0874014, `layer_stats.py`): E[k k^T] over all
attended tokens. There the corpus is read once per layer, one document at a time, and a killed layer
is lost. Here all layers are collected in one pass, in batches of similar length within a budget of
tokens, and a killed pass resumes and ends with the same bytes. Workers may run the batches: their
products are added in the order of the batches, so that the bytes are those of one process.

Shapes: B rows, T columns, d inputs of a down projection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.algorithms.locate_then_edit.corpus import Corpus, Document
from errata.core import files
from errata.core.errors import BadData, BadRun, FingerprintMismatch, TooLong
from errata.core.formats.json_value import parse_json
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import run_to_block
from errata.core.state import PrepareContext, State
from errata.core.types import Prompt, digest
from errata.linalg import covariance

#: the `editor` of a state with moments, which all locate-then-edit editors use
MOMENTS = "moments"
WINDOW = 256  # documents that are sorted by length and batched together


@dataclass(frozen=True, kw_only=True)
class StatsSettings:
    """layers: text blocks, () = all. tokens: most columns (padding too) of a batch,
    where memory allows it.

    longest: tokens of a document, the rest is cut off (0 = the model's context). attention: also
    of the inputs of the attention's output projections.
    """

    layers: tuple[int, ...] = ()
    tokens: int = 4096
    longest: int = 0
    attention: bool = False


#: the parts of a block that can be written: down projection, and output projection of the attention
FFN, ATTENTION = "mlp.down", "attn.o"


def site_of(layer: int, part: str = FFN) -> str:
    return f"text.{layer}.{part}"


def tensor_of(what: str, layer: int, part: str = FFN) -> str:
    """The name, in a state, of the `moment` or the `keys` of a part of a layer."""
    return f"{what}/{layer}" if part == FFN else f"{what}/{part}/{layer}"


class MomentRecorder(Hook):
    """Adds the inputs of its sites, without padding, to their moments."""

    def __init__(
        self, moments: Mapping[str, covariance.Moment] | Mapping[str, covariance.Products]
    ) -> None:
        super().__init__(tuple(moments))
        self.moments = moments

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        assert ctx.mask is not None, "statistics need to know which columns are real"
        self.moments[site].add(x[ctx.mask.to(x.device).bool()])
        return y


def collect(
    backbone: Backbone,
    corpus: Corpus,
    settings: StatsSettings,
    work: PrepareContext | None = None,
    *,
    every: float = 120.0,
) -> State:
    """The moments of the unedited model, as a state. Raises BadData for a corpus without text.

    With a folder in `work`, a checkpoint is written there every `every` seconds. With workers, they
    run the batches; the checkpoints are the same.
    """
    work = work or PrepareContext()
    layers = sorted({backbone.layer(i) for i in settings.layers or range(backbone.depth)})
    places = [(i, part) for part in _parts(settings) for i in layers]
    moments = {
        site_of(*place): covariance.Moment(backbone.weight(site_of(*place))[0]) for place in places
    }
    shown = {k: v for k, v in asdict(settings).items() if k != "attention" or v}
    plan = digest(
        {
            "model": backbone.fingerprint(),
            "corpus": corpus.sha256,
            "settings": json.dumps({**shown, "layers": layers}),
        }
    )
    done = _resume(work.checkpoint, plan, moments)
    documents, saved = islice(corpus.walk(), done, None), time.monotonic()
    # documents are no questions: they are never put into a chat template
    with torch.no_grad(), backbone.unedited(), backbone.in_style("raw"):
        batches = _batches(backbone, documents, done, settings)
        for batch in _added(backbone, batches, moments, layers[-1], work):
            if not batch.done:
                continue
            done = batch.done
            work.report("documents", done, corpus.count)
            if work.checkpoint is not None and time.monotonic() - saved >= every:
                _keep(work.checkpoint, plan, moments, done)
                saved = time.monotonic()
    tokens = moments[site_of(layers[0])].count
    if not tokens:
        raise BadData(
            f"the corpus '{corpus.name}' has no text to take statistics from. Give one with a "
            "document a line, or leave fewer names out."
        )
    meta = {
        "corpus": corpus.name, "sha256": corpus.sha256, "documents": done, "tokens": tokens,
        "layers": layers, "longest": settings.longest, "model": backbone.fingerprint(),
        "editors": "EDITOR",
    }  # fmt: skip
    tensors = {tensor_of("moment", *p): moments[site_of(*p)].mean().float() for p in places}
    return State(MOMENTS, meta, tensors, fingerprint=backbone.fingerprint())


def _parts(settings: StatsSettings) -> tuple[str, ...]:
    return (FFN, ATTENTION) if settings.attention else (FFN,)


def weight_of(moment_dd: Tensor, weight: float | Literal["auto"]) -> float:
    """The weight (lambda) of a second moment against the keys of edits.

    `auto` is d, its number of features. lambda tr(C)/d is then the mean squared length of a key, so
    the other texts resist an edit about as much as its own key asks for it, at any width. The
    papers' 15000 does so at widths of 11000 to 16000; on a narrow FFN it leaves most unwritten.
    """
    return float(len(moment_dd)) if weight == "auto" else weight


def moment(state: State, layer: int, part: str = FFN) -> Tensor:
    """[d, d] the second moment of a layer's keys. Raises BadData if it was not collected."""
    tensor = state.tensors.get(tensor_of("moment", layer, part))
    if tensor is None:
        raise BadData(
            f"the statistics hold layers {', '.join(map(str, state.meta['layers']))}, not {layer}. "
            "Collect them for it: errata stats BACKBONE --layers ..."
        )
    return tensor


def merged(states: Sequence[State]) -> State:
    """The moments of several corpora, merged. Raises FingerprintMismatch, BadData."""
    first = states[0]
    if len({s.fingerprint for s in states}) > 1:
        raise FingerprintMismatch(
            "these statistics were taken of different models: "
            f"{', '.join(sorted(s.fingerprint[:12] for s in states))}. Add those of one model."
        )
    if len({tuple(s.meta["layers"]) for s in states}) > 1:
        raise BadData("these statistics are of different layers. Add those of equal --layers.")
    counts = [int(s.meta["tokens"]) for s in states]
    tensors = {
        name: covariance.merge([s.tensors[name] for s in states], counts).float()
        for name in first.tensors
    }
    meta = {
        **first.meta,
        "corpus": " + ".join(str(s.meta["corpus"]) for s in states),
        "sha256": digest(sorted(str(s.meta["sha256"]) for s in states)),
        "documents": sum(int(s.meta["documents"]) for s in states),
        "tokens": sum(counts),
    }
    return State(MOMENTS, meta, tensors, fingerprint=first.fingerprint)


class DocumentBatch(NamedTuple):
    """Documents that are run together. done: documents that are in after the last batch of a
    window, where a pass can be resumed; 0 for its other batches.
    """

    documents: list[Document]
    done: int


def _added(
    backbone: Backbone,
    batches: Iterator[DocumentBatch],
    moments: Mapping[str, covariance.Moment],
    last: int,
    work: PrepareContext,
) -> Iterator[DocumentBatch]:
    """The batches, each after its products were added to the moments."""
    if work.workers is None:
        # straight into the sums: the products of all layers would be half as much memory again
        for batch in batches:
            _read(backbone, batch, moments, last)
            yield batch
        return
    task = partial(_products, sites=tuple(moments), last=last)
    for batch, products in work.mapped(backbone, task, batches):
        for site, parts in products.items():
            for product_dd, count in parts:
                moments[site].add_product(product_dd, count)
        yield batch


def _products(
    backbone: Backbone, batch: DocumentBatch, *, sites: Sequence[str], last: int
) -> dict[str, list[tuple[Tensor, int]]]:
    products = {site: covariance.Products() for site in sites}
    with torch.no_grad(), backbone.in_style("raw"):
        _read(backbone, batch, products, last)
    return {site: p.parts for site, p in products.items()}


def _read(
    backbone: Backbone,
    batch: DocumentBatch,
    moments: Mapping[str, covariance.Moment] | Mapping[str, covariance.Products],
    last: int,
) -> None:
    encoded = _encoded(backbone, batch.documents)
    with backbone.applied(MomentRecorder(moments)):
        run_to_block(backbone, encoded, last)


def _batches(
    backbone: Backbone, documents: Iterator[Document], done: int, settings: StatsSettings
) -> Iterator[DocumentBatch]:
    """Batches of documents of similar length, within the budget of tokens; `done` were before."""
    longest = min(settings.longest or backbone.context, backbone.context)
    while window := list(islice(documents, WINDOW)):
        done += len(window)
        fitted = sorted((_fitted(backbone, d, longest) for d in window), key=lambda f: f[0])
        most = min(settings.tokens, backbone.columns_to_run())
        batch: list[Document] = []
        for size, document in fitted:
            if batch and size * (len(batch) + 1) > most:
                yield DocumentBatch(batch, 0)
                batch = []
            batch.append(document)
        yield DocumentBatch(batch, done)


def _fitted(backbone: Backbone, document: Document, longest: int) -> tuple[int, Document]:
    """(tokens, document), cut to about `longest` tokens."""
    try:
        size = _encoded(backbone, [document]).ids.shape[1]
        if size <= longest:
            return size, document
    except TooLong:
        pass
    text = document.prompt.text[: 16 * longest]
    ids = backbone.answer_ids(text, Prompt.of(""))[: max(1, longest - 2)]
    while True:  # the decoded text may have more tokens than it was decoded from
        cut = Document(document.prompt.with_text(backbone.decode(ids)))
        try:
            size = _encoded(backbone, [cut]).ids.shape[1]
        except TooLong:
            size = longest + 1
        if size <= longest or len(ids) < 2:
            return size, cut
        ids = ids[: len(ids) * 9 // 10]


def _encoded(backbone: Backbone, documents: Sequence[Document]) -> Any:
    return backbone.encode([d.prompt for d in documents], [d.target for d in documents])


def _keep(path: Path, plan: str, moments: Mapping[str, covariance.Moment], done: int) -> None:
    counts = {site: m.count for site, m in moments.items()}
    head = files.dumps({"plan": plan, "documents": done, "counts": counts})
    tensors = {site: m.sum_dd for site, m in moments.items()}
    files.write_bytes(path, to_safetensors(tensors, metadata={"head": head}))


def _resume(path: Path | None, plan: str, moments: Mapping[str, covariance.Moment]) -> int:
    """Fills the moments from the checkpoint; returns its number of documents. Raises BadRun."""
    if path is None or not path.exists():
        return 0
    broken = (
        f"{path} cannot be read: it is damaged or cut off. Delete it and run the same command "
        "again: the statistics start anew."
    )
    try:
        with safe_open(str(path), "pt") as f:
            head = parse_json(f.metadata()["head"])
            sums = {name: f.get_tensor(name).clone() for name in f.keys()}
        plan_there, done = str(head["plan"]), int(head["documents"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        raise BadRun(broken) from None
    if plan_there != plan:
        raise BadRun(
            f"{path} belongs to unfinished statistics of another model, corpus or settings. "
            "Choose another --out, or delete it."
        )
    try:
        for site, m in moments.items():
            m.sum_dd, m.count = sums[site], int(head["counts"][site])
    except (LookupError, TypeError, ValueError):
        raise BadRun(broken) from None
    return done
