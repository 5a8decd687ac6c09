"""Time and memory of the `unike` editor on models of real shapes with random weights.

    OMP_NUM_THREADS=1 python perf/real_shapes.py --shape llava-1.5-7b [--depth 5]
        [--dtype bfloat16] [--device cuda] [--steps 10] [--probes 100] [--out llava.json]

For one model: peak bytes that an edit adds, measured and by a formula; seconds per edit, by phase;
seconds per 100 probes with and without the patch; size of the shared memory on disk and in this
process. `--depth` cuts the text model: the last four blocks, which an edit changes, keep their
shape, and the blocks below are timed per block. On a CPU, seconds are CPU seconds of this process,
so that other jobs do not count; on an accelerator, seconds of the clock.
Numbers: docs/results/speed.md.

Shapes: T prompt and target tokens, d width, f FFN width, K retrieved entries, N stored ones.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_models import EDITED, ENCODER, SHAPES, TRUTH, Shape, random_model, random_state

from errata.algorithms import gradient
from errata.algorithms.neuron_search import NeuronEditor
from errata.backbones._decoder import DecoderBackbone
from errata.backbones.hf_vlm import HfVlm
from errata.core import registry
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Ask
from errata.core.model.batch import Heads
from errata.core.patch import Header
from errata.core.state import State
from errata.core.types import Case
from errata.editors import unike
from errata.evaluation.answers import PromptRequest, ask_all
from errata.io import patch_folder as patches
from errata.io import states
from errata.patches.latent import CHUNK, Latent, LatentSettings, SharedMemory
from errata.patches.neurons import Neurons
from errata.training import optimise

# -- formulas -------------------------------------------------------------------------------------


def neuron_bytes(shape: Shape, neurons: int, layers: int = EDITED) -> int:
    """Parameters of an edit's neurons with gradients and two moments, all float32."""
    each = 3 * shape.width + 2 if shape.gated else 2 * shape.width + 1
    return 16 * layers * neurons * each


def kept_bytes(shape: Shape, tokens: int, top: int, size: int, layers: int = EDITED) -> int:
    """What the forward of the edited blocks keeps for the backward; `size`: bytes of the dtype.

    Per token, in a block behind the first edited one: q, k, v and the output of the attention (and
    its log-sum); the inputs of both norms, in float32 for RMS norms; the FFN's inner states (gate,
    its activation, up; or one activation); the weights of the memory [H, K]. In every edited block
    the neurons keep their input in float32. The first keeps nothing else. The retrieved entries,
    their keys and values in float32, and copies of both per query head where a gradient passes.
    """
    d, f = shape.width, shape.ffn
    norms = 2 * d * (4 if shape.gated else size)
    ffn = (3 if shape.gated else 1) * f * size
    block = 4 * d * size + 4 * shape.heads + norms + ffn + 4 * shape.heads * top
    entries = 4 * d * top * (3 * layers + 2 * (layers - 1))
    return tokens * ((layers - 1) * block + layers * 4 * d) + entries


def edit_bytes(
    shape: Shape,
    tokens: int,
    *,
    neurons: int = 10,
    top: int = 40,
    size: int = 2,
    entries: int = 15000,
) -> dict[str, int]:
    """Peak that an edit adds: its neurons, what is kept, and the largest of what comes and goes.

    That is a piece of the memory in float32 (retrieval), a layer of the semantic encoder in float32
    (alpha), or three gradients of the FFN's inner states.
    """
    d = shape.width
    passing = {
        "retrieval": 4 * d * min(CHUNK, entries),
        "alpha": 4 * d * min(ENCODER, 2 * d),
        "backward": 3 * tokens * shape.ffn * size,
    }
    told = {
        "neurons": neuron_bytes(shape, neurons),
        "kept": kept_bytes(shape, tokens, top, size),
        "passing": max(passing.values()),
    }
    return {**told, "sum": sum(told.values())}


def state_numbers(width: int, entries: int, layers: int = EDITED) -> int:
    """Numbers in a prepared state's tensors per block: three states an entry, both encoders with
    their standardisation, two decoders, two directions and a length, the mean.
    """
    d, w, t = width, min(ENCODER, 2 * width), min(TRUTH, 2 * width)
    semantic = d * w + w + w * w + w + w * d + d + 2 * d
    truth = d * w + w + w * w + w + w * t + t + 2 * d
    return layers * (3 * entries * d + semantic + truth + d * d + d * t + 2 * d + 1 + d)


# -- measuring ------------------------------------------------------------------------------------


def resident() -> dict[str, int]:
    """Bytes of this process in memory: its own (`anon`), and pages of mapped files (`file`)."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name.removeprefix("Rss").lower()] = int(value.split()[0]) * 1024
    return found


@dataclass
class Clock:
    """Seconds by nested name, and when (in ns) each name was running."""

    device: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        self.stack.append(name)
        key, at, started = "/".join(self.stack), time.time_ns(), self.now()
        try:
            yield
        finally:
            self.seconds[key].append(self.now() - started)
            self.spans.append((key, at, time.time_ns()))
            self.stack.pop()

    @contextmanager
    def watching(self, *targets: tuple[Any, str, str]) -> Iterator[None]:
        """Times the attributes `owner.attribute` under a name each, while inside."""
        with ExitStack() as stack:
            for owner, attribute, name in targets:
                original = getattr(owner, attribute)
                setattr(owner, attribute, self._timed(original, name))
                stack.callback(setattr, owner, attribute, original)
            yield

    def _timed(self, run: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.named(name):
                return run(*args, **kwargs)

        return timed

    def sum_of(self, targets: Sequence[tuple[Any, str, str]], below: str) -> float:
        return sum(sum(self.seconds.get(f"{below}/{name}", ())) for _, _, name in targets)

    def table(self) -> dict[str, dict[str, float]]:
        return {
            k: {"calls": len(v), "total_s": sum(v), "median_s": median(v)}
            for k, v in sorted(self.seconds.items())
        }


PATCH_PARTS = (
    (Latent, "_retrieved", "retrieve"),
    (Latent, "_projected", "project"),
    (Latent, "_weights", "weights"),
    (Latent, "_alpha", "alpha"),
    (Neurons, "at", "neurons"),
)
EDIT_PARTS = (
    (unike, "ends", "own"),
    (NeuronEditor, "_queries", "queries"),
    (gradient, "search", "search"),
    (DecoderBackbone, "enter", "enter"),
    (DecoderBackbone, "_below", "below"),
    (DecoderBackbone, "logits", "logits"),
    (optimise.RowAdam, "step", "step"),
    (torch.autograd, "grad", "grad"),
)


@contextmanager
def peak_added(device: str, told: dict[str, Any], clock: Clock) -> Iterator[None]:
    """Notes what is allocated at most inside, over what was before.

    On a CPU: what the allocator gave out (`allocated`), by phase too, and the growth of the
    process' own resident pages, sampled, in which libraries' work space counts as well.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        torch.cuda.synchronize()
        told["allocated"] = torch.cuda.max_memory_allocated() - before
        return
    start, highest, stop = resident()["anon"], [0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.01):
            highest[0] = max(highest[0], resident()["anon"])

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    activities = [torch.profiler.ProfilerActivity.CPU]
    try:
        with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
            yield
    finally:
        stop.set()
        sampler.join()
    told["resident"] = highest[0] - start
    results: Any = seen.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    told["allocated"], told["by_phase"] = highest_sums(events, clock.spans)


def highest_sums(
    events: Sequence[tuple[int, int]], spans: Sequence[tuple[str, int, int]]
) -> tuple[int, dict[str, int]]:
    """Highest running sum of (time, bytes) events, overall and inside spans (name, from, to)."""
    total, highest, by_name = 0, 0, dict.fromkeys((s[0] for s in spans), 0)
    for at, size in events:
        total += size
        highest = max(highest, total)
        for name, start, end in spans:
            if start <= at <= end:
                by_name[name] = max(by_name[name], total)
    return highest, by_name


def cases_of(count: int) -> list[Case]:
    spec = BenchmarkSpec.parse("microworld:vqa@dev")
    loaded = registry.load("benchmarks", spec.name)().load(spec)
    return list(loaded.cases[:: max(1, len(loaded.cases) // count)])[:count]


def editing(
    backbone: HfVlm, shape: Shape, state: State, args: argparse.Namespace
) -> tuple[dict[str, Any], Any]:
    """One edit: phases, peak, and the formula's peak. Returns the patch too."""
    case = next(c for c in cases_of(8) if c.edit.prompt.images)
    editor = registry.load("editors", "unike")(
        preset="paper", steps=args.steps, stop_loss=0.0, neurons=args.neurons, top=args.top
    )
    shared = SharedMemory.of(state)
    if args.device.startswith("cuda"):  # work spaces, and the shared memory on the device
        warm = registry.load("editors", "unike")(preset="paper", steps=1, stop_loss=0.0)
        warm.edit(backbone, [case.edit], state)
    for entries in shared.blocks.values():  # their lengths: once per process, no part of an edit
        entries.cosines(torch.ones(1, shape.width, device=entries.sem.device))
    clock, peak = Clock(args.device), dict[str, Any]()
    with peak_added(args.device, peak, clock), clock.watching(*EDIT_PARTS, *PATCH_PARTS):
        with clock.named("edit"):
            found = editor.edit(backbone, [case.edit], state)
    batch, _ = optimise.encode_edits(backbone, [[case.edit]], eos=True)
    tokens, size = batch.ids.shape[1], torch.empty((), dtype=backbone.dtype).element_size()
    formula = edit_bytes(
        shape, tokens, neurons=args.neurons, top=args.top, size=size, entries=args.entries
    )
    told = {
        "tokens": tokens,
        "steps": args.steps,
        "peak": peak,
        "formula": formula,
        "formula_of_measured": formula["sum"] / peak["allocated"],
        "phases": clock.table(),
    }
    return told, found.patch


def asking(backbone: HfVlm, patch: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per 100 probes without and with the patch, and the patch's own parts."""
    asked = [
        PromptRequest(Ask(c.id, p), 0) for c in cases_of(8) for p in c.probes if p.prompt.images
    ]
    asked = asked[:: max(1, len(asked) // args.probes)][: args.probes]
    told: dict[str, Any] = {"probes": len(asked), "batch": args.batch}
    parts = (*PATCH_PARTS, (DecoderBackbone, "_below", "below"))
    for name, live in (("without", None), ("with", patch)):
        clock = Clock(args.device)
        backbone.forget()
        with backbone.applied(live), clock.watching(*parts), clock.named("ask"):
            answers = ask_all(backbone, asked, step=-1, batch_size=args.batch)
        told[name] = {
            "per_100_s": 100 * sum(clock.seconds["ask"]) / len(asked),
            "tokens_said": sum(len(a.ids) for a in answers) / len(answers),
            "by_patch_per_100_s": 100 * clock.sum_of(PATCH_PARTS, "ask") / len(asked),
            "phases": clock.table(),
        }
    return told


def remembering(folder: Path, state: State, count: int) -> dict[str, Any]:
    """The shared memory on disk and in memory: opened, then named by `count` patches."""
    told: dict[str, Any] = {"bytes": (folder / "state.safetensors").stat().st_size, "steps": []}
    last = resident()

    def note(what: str, run: Callable[[], Any]) -> Any:
        nonlocal last
        started = time.process_time()
        value = run()
        now = resident()
        told["steps"].append(
            {"what": what, "s": time.process_time() - started,
             **{k: now[k] - last[k] for k in now}}
        )  # fmt: skip
        last = now
        return value

    head = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    opened = note("opened", lambda: State.load(folder))
    note("entries looked at, not read", lambda: [t.shape for t in opened.tensors.values()])
    states.link(folder, head["digest"])
    layers = sorted({int(k.split("/")[0][5:]) for k in opened.tensors})
    width = opened.tensors[f"text.{layers[0]}/sem"].shape[1]
    own = {i: (torch.ones(1, width), torch.ones(1, width)) for i in layers}
    heads = {i: Heads(32, 32, width // 32, 1.0) for i in layers}
    shared = SharedMemory(head["digest"], SharedMemory.of(state).blocks)
    made = Latent(shared, heads, own, LatentSettings()).with_header(Header(fingerprint="f"), [])
    places = [folder / f"patch{k}" for k in range(count)]
    for place in places:
        patches.save(made, place)
    last = resident()
    loaded = [note("first patch loaded", lambda: patches.load(places[0]))]
    loaded += note(f"{count - 1} more loaded", lambda: [patches.load(p) for p in places[1:]])
    ends = {p.blocks[layers[0]].sem.data_ptr() for p in loaded}
    told["memories_of_all_patches"] = len(ends)
    told["copies_on_an_accelerator"] = len({id(p.knowledge) for p in loaded})
    query = torch.ones(1, width) / width**0.5
    for turn in ("first", "second"):
        note(f"{turn} retrieval of all blocks",
             lambda: [loaded[0].blocks[i].cosines(query) for i in layers])  # fmt: skip
    return told


# -- running --------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--depth", type=int, help="text blocks (default: all)")
    parser.add_argument("--vision", type=int, help="blocks of the vision model (default: all)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--neurons", type=int, default=10)
    parser.add_argument("--top", type=int, default=40)
    parser.add_argument("--entries", type=int, default=15000)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--measure", default="state,edit,probes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.depth = args.depth or SHAPES[args.shape].depth
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    shape, wanted = SHAPES[args.shape], args.measure.split(",")
    told: dict[str, Any] = {
        "shape": asdict(shape), "depth": args.depth, "dtype": args.dtype, "device": args.device,
        "torch": torch.__version__,
    }  # fmt: skip

    def tell(name: str, value: Mapping[str, Any]) -> None:
        told[name] = value
        print(name, json.dumps(value), flush=True)
        if args.out:
            args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        os.environ["ERRATA_HOME"] = str(Path(name) / "home")
        layers = range(args.depth - EDITED, args.depth)
        made = random_state(shape.width, layers, args.entries)
        before, started = resident()["anon"], time.process_time()
        made.save(folder)
        tell("saving", {"s": time.process_time() - started, "left": resident()["anon"] - before})
        del made
        state = State.load(folder)
        if "state" in wanted:
            tell("state", remembering(folder, state, 10))
        if not {"edit", "probes"} & set(wanted):
            return
        backbone = random_model(args.shape, args.depth, args.vision, args.dtype, args.device)
        numbers = sum(p.numel() for p in backbone.model.parameters())
        # a checkpoint's files are hashed once, not timed here
        backbone.fingerprint = lambda: backbone.name
        started = time.process_time()
        state.digest()
        tell("model", {"numbers": numbers, "state_hashed_s": time.process_time() - started})
        edited, patch = editing(backbone, shape, state, args)
        tell("edit", edited)
        if "probes" in wanted:
            tell("probes", asking(backbone, patch, args))


if __name__ == "__main__":
    main()
