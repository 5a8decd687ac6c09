"""MMEdit from hand-made files to scores, with images missing and broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from errata.core import registry
from errata.evaluation.bench import bench
from tests import tiny


def make(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    (root / "val2014").mkdir(parents=True)
    rows = []
    for i in range(count):
        for name in (f"{i}", f"r{i}", f"m{i}"):
            picture = rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)
            Pil.fromarray(picture).save(root / "val2014" / f"{name}.png")
        rows.append({
            "src": f"What is thing {i}?", "pred": "no", "rephrase": f"Which thing is it, {i}?",
            "alt": "red ring", "image": f"val2014/{i}.png", "image_rephrase": f"val2014/r{i}.png",
            "loc": f"nq question: who made {i}", "loc_ans": "someone",
            "m_loc": f"val2014/m{i}.png", "m_loc_q": f"What colour is {i}?", "m_loc_a": "blue",
        })  # fmt: skip
    for name in ("vqa_train", "vqa_eval", "caption_train_edit", "caption_eval_edit"):
        (root / f"{name}.json").write_text(json.dumps(rows))


def test_from_files_to_scores(tmp_path: Path) -> None:
    make(tmp_path / "data", 8)
    images = tmp_path / "data" / "val2014"
    (images / "0.png").unlink()
    (images / "1.png").write_bytes(b"\x89PNG broken")
    (images / "m2.png").unlink()
    editor = registry.load("editors", "ft_l")(lr=3e-2, steps=100)
    out = bench(
        tiny.shared("llava"), editor, "mmedit:vqa", "one_step", tmp_path / "run",
        root=tmp_path / "data", legacy=True, metrics=["legacy"],
    )  # fmt: skip
    plan = json.loads((out / "plan.json").read_text())
    assert len(plan["cases"]) == 6
    reasons = {s["id"]: s["reason"] for s in plan["dropped"]}
    assert any("0.png" in r for r in reasons.values()) and any(
        "1.png" in r for r in reasons.values()
    )
    assert any("m2.png" in r for r in reasons.values())
    scores = json.loads((out / "scores.json").read_text())["metrics"]
    for scorer in ("exact", "token", "legacy"):
        assert scores[f"reliability.{scorer}"]["value"] is not None
    assert scores["m_locality.exact"]["n"] == 5
    assert scores["reliability.exact"]["value"] == 1.0
