"""Trains pocket-vlm's tower and projector on one CPU thread.

    python -m tools.pocket_vlm.train work/pocket-vlm/drawings.npz [--work FOLDER] [--begin B]

Stage A (`captioning`): image tokens learn the word vectors of a caption. Stage B (`reading`): they
are trained through the frozen language model. Checkpoints and the log go into the work folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tools.pocket_vlm import captioning, data, reading, score
from tools.pocket_vlm.model import Eye, language_model

#: held-out sources that are looked at during training; the others are first used for the card
WATCHED = ("openmoji", "emojione-v1")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("drawings", type=Path)
    p.add_argument("--work", type=Path, default=Path("work/pocket-vlm"))
    p.add_argument("--begin", choices=("A1", "A2", "B"), default="A1", help="continue with this")
    p.add_argument("--steps", type=int, nargs=3, default=(1000, 600, 320), help="of each part")
    p.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)

    def log(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        print(line, flush=True)
        with (args.work / "log.txt").open("a") as out:
            out.write(line + "\n")

    trained = data.read(args.drawings, data.TRAINED)
    watched = {s: data.read(args.drawings, (s,)) for s in WATCHED}
    model, eye = language_model(), Eye()
    eye.tower.config._attn_implementation = "eager"  # its backward is faster on a CPU
    if not args.no_compile:
        for layer in eye.tower.encoder.layers:
            layer.compile()
    words = captioning.Words(model.get_input_embeddings().weight)
    watch = {**watched, "twemoji (trained)": trained.of("twemoji")}
    for part in (
        captioning.Part("A1", args.steps[0], (1.2e-3, 0.0)),
        captioning.Part("A2", args.steps[1], (6e-4, 2e-3)),
    ):
        file = args.work / f"{part.name}.pt"
        if args.begin > part.name:
            eye.load_state_dict(torch.load(file))
            continue
        heads = captioning.Heads(eye.width, len(words.slots))
        captioning.run(part, eye, heads, words, trained, watch, 96, log)
        torch.save(eye.state_dict(), file)
    plain = language_model()

    some = {s: d.every(5) for s, d in watched.items()}

    def look() -> str:
        names = (f"{s}={100 * score.naming(plain, eye, d):.1f}" for s, d in some.items())
        right = score.facts(plain, eye, some[WATCHED[0]])
        return " ".join((*names, *(f"{r}={a}/{n}" for r, (a, n) in right.items())))

    log(f"before B: {look()}")
    reader = reading.Reader(model, compiled=not args.no_compile)
    start = time.time()
    teacher = reading.Teacher.asked(reading.Reader(language_model(), compiled=False))
    log(f"the teacher was asked in {time.time() - start:.0f}s")
    reading.train(
        eye, reader, teacher, trained, args.steps[2], 12, args.work / "B.pt", log, look
    )  # fmt: skip


if __name__ == "__main__":
    main()
