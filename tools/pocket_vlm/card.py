"""Measures the bundled pocket-vlm; writes its card (README.md, figures.json) beside the weights.

python -m tools.pocket_vlm.card work/pocket-vlm/drawings.npz --log work/pocket-vlm/log.txt

Everything is asked through `errata.load("pocket-vlm")`, in float32. The text around the figures is
card.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from torch import Tensor

import errata
from errata.benchmarks._countries import COUNTRIES
from errata.benchmarks.pocket.wordings import IN_TEXT, NAMING, RELATIONS, UNSEEN
from errata.core.text import same_answer
from errata.core.types import Prompt
from tools.pocket_vlm.data import Drawings, read
from tools.pocket_vlm.drawings import HELD_OUT, TRAINED
from tools.pocket_vlm.export import ASSETS
from tools.pocket_vlm.score import LENGTH, answer_of, begins

TEXT = Path(__file__).with_suffix(".md")
#: sources whose drawings are asked for facts too
ASKED = ("noto", "circle-flags")
#: of the drawings of trained sources, and for other wordings, one in so many is asked
EVERY = 3


def on_white(drawing: Tensor) -> Pillow.Image:
    """RGBA bytes [4, S, S] as a picture without transparency."""
    tile = Pillow.fromarray(drawing.permute(1, 2, 0).numpy())
    ground = Pillow.new("RGBA", tile.size, "white")
    ground.alpha_composite(tile)
    return ground.convert("RGB")


def answers(bb: Any, prompts: Sequence[Prompt]) -> list[str]:
    return [a.text for a in errata.ask(bb, list(prompts), cap=LENGTH)]


def names(bb: Any, drawings: Drawings, wording: str) -> list[str]:
    return answers(bb, [Prompt.of(wording, on_white(x)) for x in drawings.pictures])


def counted(texts: Sequence[str], drawings: Drawings) -> dict[str, int]:
    """How many drawings are named, at the beginning of the answer and as all of it."""
    right = [COUNTRIES[c].name for c in drawings.labels.tolist()]
    pairs = list(zip(texts, right, strict=True))
    return {
        "asked": len(pairs),
        "begins": sum(begins(t, r) for t, r in pairs),
        "exact": sum(same_answer(t, r) for t, r in pairs),
    }


def known_in_text(bb: Any) -> dict[str, dict[int, bool]]:
    """relation -> country -> whether the language model knows it when the name is in front."""
    out = {}
    for relation, question in RELATIONS.items():
        asked = [i for i in range(len(COUNTRIES)) if answer_of(i, relation)]
        prompts = [Prompt.of(IN_TEXT.format(COUNTRIES[i].name, question)) for i in asked]
        said = answers(bb, prompts)
        out[relation] = {
            i: begins(t, answer_of(i, relation)) for i, t in zip(asked, said, strict=True)
        }
    return out


def facts(
    bb: Any, drawings: Drawings, named: Sequence[bool], known: dict[str, dict[int, bool]]
) -> dict[str, dict[str, int]]:
    """Of the drawings that are named right: what is then known about the country.

    `both`: of those that the language model knows in text (`text`), how many it answers here.
    """
    out = {}
    for relation, question in RELATIONS.items():
        keep = [i for i, c in enumerate(drawings.labels.tolist())
                if named[i] and answer_of(c, relation)]  # fmt: skip
        said = answers(bb, [Prompt.of(question, on_white(drawings.pictures[i])) for i in keep])
        right = [begins(t, answer_of(int(drawings.labels[i]), relation))
                 for i, t in zip(keep, said, strict=True)]  # fmt: skip
        in_text = [known[relation][int(drawings.labels[i])] for i in keep]
        out[relation] = {
            "asked": len(keep),
            "picture": sum(right),
            "text": sum(in_text),
            "both": sum(a and b for a, b in zip(right, in_text, strict=True)),
        }
    return out


def measured(drawings: Path) -> dict[str, Any]:
    bb = errata.load("pocket-vlm")
    known = known_in_text(bb)
    out: dict[str, Any] = {
        "text": {r: {"asked": len(k), "right": sum(k.values())} for r, k in known.items()},
        "naming": {},
        "facts": {},
        "wordings": {},
    }
    for source in (*HELD_OUT, *TRAINED):
        these = read(drawings, (source,)).every(1 if source in HELD_OUT else EVERY)
        texts = names(bb, these, NAMING[0])
        out["naming"][source] = {"held out": source in HELD_OUT, **counted(texts, these)}
        print(source, out["naming"][source], flush=True)
        if source in ASKED:
            named = [begins(t, COUNTRIES[c].name)
                     for t, c in zip(texts, these.labels.tolist(), strict=True)]  # fmt: skip
            out["facts"][source] = facts(bb, these, named, known)
            print(out["facts"][source], flush=True)
    noto = read(drawings, ("noto",)).every(EVERY)
    for wording in (*NAMING[1:], *(w for group in UNSEEN.values() for w in group)):
        seen = {"trained": wording in NAMING}
        out["wordings"][wording] = {**seen, **counted(names(bb, noto, wording), noto)}
        print(wording, out["wordings"][wording], flush=True)
    return out


def seconds(log: Path) -> dict[str, int]:
    """Seconds of each part of the training, from its log."""
    found = re.findall(r"^\S+ (A1|A2|B) (\d+)/\2 (\d+)s", log.read_text(), re.MULTILINE)
    out = {part: int(time) for part, _, time in found}
    asked = re.search(r"the teacher was asked in (\d+)s", log.read_text())
    return out | ({"teacher": int(asked[1])} if asked else {})


def share(right: int, asked: int) -> str:
    return f"{100 * right / asked:.1f} ({right}/{asked})"


def tables(figures: dict[str, Any]) -> dict[str, str]:
    """The tables of the card, by the name of their place in card.md."""
    naming = ["| source | | begins with the name | nothing but the name |", "|---|---|---|---|"]
    for source, n in figures["naming"].items():
        kind = "held out" if n["held out"] else "trained"
        cells = share(n["begins"], n["asked"]), share(n["exact"], n["asked"])
        naming.append(f"| {source} | {kind} | {cells[0]} | {cells[1]} |")
    known = ["| drawings | relation | from the picture | from the name | both, of those known from "
             "the name |", "|---|---|---|---|---|"]  # fmt: skip
    for source, relations in figures["facts"].items():
        for relation, n in relations.items():
            cells = (share(n[k], n["asked"]) for k in ("picture", "text"))
            both = share(n["both"], max(1, n["text"]))
            known.append(f"| {source} | {relation} | {' | '.join(cells)} | {both} |")
    wordings = ["| wording | | begins with the name |", "|---|---|---|"]
    for wording, n in figures["wordings"].items():
        kind = "trained" if n["trained"] else "never trained"
        wordings.append(f"| {wording} | {kind} | {share(n['begins'], n['asked'])} |")
    text = ", ".join(
        f"{r} {share(n['right'], n['asked'])}" for r, n in figures["text"].items()
    )  # fmt: skip
    return {"naming": "\n".join(naming), "facts": "\n".join(known),
            "wordings": "\n".join(wordings), "text": text}  # fmt: skip


def write(figures: dict[str, Any]) -> None:
    spent = figures["seconds"]
    places = {
        **tables(figures),
        "countries": str(len(COUNTRIES)),
        "parameters": f"{figures['parameters'] / 1e6:.2f}",
        "size": f"{figures['bytes'] / 1e6:.1f}",
        "seconds": ", ".join(f"{part} {s}" for part, s in spent.items()),
        "minutes": f"{sum(spent.values()) / 60:.0f}",
    }
    text = TEXT.read_text(encoding="utf-8")
    for key, value in places.items():
        text = text.replace("{" + key + "}", value)
    (ASSETS / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("drawings", type=Path)
    p.add_argument("--log", type=Path, required=True, help="log.txt of the training")
    args = p.parse_args()
    torch.set_num_threads(1)
    from safetensors.torch import load_file

    weights = next(ASSETS.glob("*.safetensors"))
    figures = {
        "seconds": seconds(args.log),
        "parameters": sum(t.numel() for t in load_file(weights).values()),
        "bytes": weights.stat().st_size,
        **measured(args.drawings),
    }
    text = json.dumps(figures, indent=1) + "\n"
    (ASSETS / "figures.json").write_text(text, encoding="utf-8")
    write(figures)


if __name__ == "__main__":
    main()
