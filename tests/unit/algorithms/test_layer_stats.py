"""Second moments: brute force, padding and packing, kills, merging, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from errata.algorithms.locate_then_edit import corpus, layer_stats
from errata.algorithms.locate_then_edit.layer_stats import (
    StatsSettings,
    collect,
    merged,
    moment,
    site_of,
)
from errata.core.errors import BadData, BadRun, BadSpec, FingerprintMismatch, MissingExtra
from errata.core.model.recorder import Recorder
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit, Probe, Prompt
from errata.linalg import covariance
from tests import tiny

LINES = [
    "The ring is red and the thing is green.",
    "What is the colour of the Fact? It is blue, they say, and so it is.",
    "",
    "Prompt",
    "A New thing of the ring, of the green ring and the blue ring.",
    "shape shape shape",
    "Is it what it is? It is.",
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_a_moment_is_the_brute_force_mean(family, texts):
    """E[k k^T] over every real token, by numpy, one document at a time; OPT flattens its FFN."""
    bb = tiny.shared(family)
    state = collect(bb, corpus.from_file(texts), StatsSettings(tokens=40))
    sums: dict[int, Any] = {i: 0.0 for i in range(bb.depth)}
    count = 0
    for line in filter(None, LINES):
        watch = Recorder([site_of(i) for i in range(bb.depth)])
        with torch.no_grad(), bb.applied(watch):
            bb.logits(bb.encode([Prompt.of(line)]))
        for i in sums:
            x = watch.x[site_of(i)][0].double().numpy()
            sums[i] = sums[i] + np.einsum("ti,tj->ij", x, x)
        count += len(x)
    assert state.meta["tokens"] == count and state.meta["documents"] == 6
    for i, wanted in sums.items():
        got = moment(state, i).double().numpy()
        assert np.abs(got - wanted / count).max() < 1e-5 * np.abs(wanted / count).max()


def test_padding_and_packing_do_not_matter(texts):
    bb = tiny.shared("llava")
    one, many = (
        collect(bb, corpus.from_file(texts), StatsSettings(tokens=n, layers=(-1, 1)))
        for n in (1, 9999)
    )
    assert one.meta["layers"] == [1, 3] and one.meta["tokens"] == many.meta["tokens"]
    for name in one.tensors:
        top = float(one.tensors[name].abs().max())
        assert torch.allclose(one.tensors[name], many.tensors[name], atol=1e-6 * top)


def test_a_killed_pass_ends_with_the_same_bytes(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_stats, "WINDOW", 2)
    bb, source = tiny.shared("llava"), corpus.from_file(texts)
    whole = collect(bb, source, StatsSettings())

    def killed(_: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(bb, source, StatsSettings(), PrepareContext(tmp_path / "w", killed), every=0.0)
    seen: list[int] = []
    kept = PrepareContext(tmp_path / "w", lambda _, done, total: seen.append(done))
    again = collect(bb, source, StatsSettings(), kept, every=0.0)
    assert seen == [4, 6]  # what the killed pass had kept is not done again
    assert again.digest() == whole.digest()
    with pytest.raises(BadRun, match="another model, corpus or settings"):
        collect(bb, source, StatsSettings(longest=5), kept)
    (tmp_path / "w" / "training.safetensors").write_bytes(b"half")
    with pytest.raises(BadRun, match="cannot be read"):
        collect(bb, source, StatsSettings(), kept)


def test_long_documents_are_cut(texts):
    bb = tiny.shared("llava")
    long = Prompt.of("What is the colour of the thing? " * 400)  # beyond the context of 512
    source = corpus.Corpus("long", "x", 1, lambda: iter([corpus.Document(long)]))
    for longest, low in ((0, 300), (20, 10)):
        state = collect(bb, source, StatsSettings(longest=longest))
        assert low <= state.meta["tokens"] <= (longest or bb.context)


def test_statistics_are_of_the_unedited_model(texts):
    from errata.patches.delta import Delta

    bb, source = tiny.shared("llava"), corpus.from_file(texts)
    into, out = bb.weight("text.0.mlp.down")
    with bb.applied(Delta({"text.0.mlp.down": {"dense": torch.ones(out, into)}})):
        edited = collect(bb, source, StatsSettings())
    assert edited.digest() == collect(bb, source, StatsSettings()).digest()


def test_parts_of_a_corpus_add_up(texts, tmp_path):
    bb = tiny.shared("llava")
    halves = []
    for n, lines in enumerate((LINES[:3], LINES[3:])):
        (tmp_path / f"{n}.txt").write_text("\n".join(lines))
        halves.append(collect(bb, corpus.from_file(tmp_path / f"{n}.txt"), StatsSettings()))
    whole, both = collect(bb, corpus.from_file(texts), StatsSettings()), merged(halves)
    assert both.meta["tokens"] == whole.meta["tokens"]
    for name in whole.tensors:
        assert torch.allclose(both.tensors[name], whole.tensors[name], rtol=1e-4, atol=1e-6)
    other = collect(tiny.shared("qwen3"), corpus.from_file(texts), StatsSettings())
    with pytest.raises(FingerprintMismatch, match="different models"):
        merged([whole, other])
    with pytest.raises(BadData, match="different layers"):
        merged([whole, collect(bb, corpus.from_file(texts), StatsSettings(layers=(1,)))])
    with pytest.raises(BadData, match="not 2"):
        moment(collect(bb, corpus.from_file(texts), StatsSettings(layers=(1,))), 2)


def test_names_that_are_left_out(texts):
    source = corpus.leaving_out(corpus.from_file(texts), ["the Ring", "prompt"])
    left = [d.prompt.text for d in source.walk()]
    assert left == [LINES[1], LINES[5], LINES[6]] and source.count == 3
    assert source.sha256 != corpus.from_file(texts).sha256
    assert not corpus.mentions(["ring"])("a string")
    nothing = corpus.leaving_out(corpus.from_file(texts), ["is", "shape", "Prompt", "A New thing"])
    with pytest.raises(BadData, match="no text"):
        collect(tiny.shared("llava"), nothing, StatsSettings())


def test_questions_of_training_cases():
    """Right answers only, each question once; what a case edits is left out unless wanted."""
    spared = Probe("l", Prompt.of("Who made Umber?"), "t_locality", reference="Corvin")
    drawn = Probe("i", Prompt.of("a photo of Umber"), "i_locality", reference="a red ring")
    about = Probe("g", Prompt.of("Vex is from"), "t_generality", reference="false")
    cases = [
        Case(
            f"c{i}",
            Edit(Prompt.of(f"Home of Vex {i}?"), "false", "Vex", "Aldham"),
            (spared, drawn, about),
        )
        for i in range(3)
    ]

    def said(**how: Any) -> set[str]:
        rng = torch.Generator().manual_seed(0)
        made = corpus.from_cases(cases, **{"most": 9, "edited": False, **how}, rng=rng)
        return {d.text for d in made.walk()}

    assert said() == {"Who made Umber? Corvin", "a photo of Umber "}
    assert said(edited=True) == said() | {f"Home of Vex {i}? Aldham" for i in range(3)}
    assert said(edited=True, without=("vex",)) == said()
    assert len(said(edited=True, most=2)) == 2


def test_data_sets_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"errata\[corpus\]"):
        corpus.from_dataset("some/set", split="train", column="text")


def test_a_data_set_is_shuffled_and_read_by_column(monkeypatch):
    rows = [{"text": f"row {i}", "other": ""} for i in range(20)]

    class Rows(list):  # type: ignore[type-arg]
        column_names = ("text", "other")

    def load(*args: str, split: str) -> Rows:
        if args[0] != "some/set":
            raise OSError("no such set")
        assert split == "train" and args[1:] in ((), ("en",))
        return Rows(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    made = corpus.from_dataset("some/set:en", split="train", column="text", most=5)
    drawn = [d.prompt.text for d in made.walk()]
    assert len(drawn) == made.count == 5 and drawn != [r["text"] for r in rows[:5]]
    assert [d.prompt.text for d in made.walk()] == drawn
    with pytest.raises(BadData, match="no column 'body'"):
        corpus.from_dataset("some/set", split="train", column="body")
    with pytest.raises(BadData, match="no such set"):
        corpus.from_dataset("other/set", split="train", column="text")


def test_a_state_that_every_editor_takes(texts, tmp_path):
    from errata.cli.shared.options import load_state, make_editor

    state = collect(tiny.shared("llava"), corpus.from_file(texts), StatsSettings())
    state.save(tmp_path / "s")
    for name in ("rome", "memit", "pmet", "alphaedit"):
        loaded = load_state(str(tmp_path / "s"), make_editor(name, None, None))
        assert loaded is not None and loaded.digest() == state.digest()
    with pytest.raises(BadSpec, match="state of editor 'moments'"):
        load_state(str(tmp_path / "s"), make_editor("mend", None, None))
    assert "EDITOR" in (tmp_path / "s" / "README.md").read_text()


def test_too_little_text_is_said():
    bb = tiny.shared("llava")
    source = corpus.Corpus("few", "x", 1, lambda: iter([corpus.Document(Prompt.of("ring"))]))
    from errata import editor

    state = collect(bb, source, StatsSettings())
    edit = Edit(Prompt.of("The ring is"), "red", "ring")
    assert covariance.factor(moment(state, 1), 1.0) is None
    with pytest.raises(BadData, match="singular"):
        editor("memit", layers=(1,), ridge=0.0, steps=1).edit(bb, [edit], state)


def test_the_command(texts, tmp_path, capsys):
    from errata.cli import main

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["stats", *map(str, arguments)])
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out + out.err

    code, said = run("micro-vlm", "--corpus", texts, "--layers", "1,-1", "--out", tmp_path / "a")
    assert code == 0 and "6 documents" in said
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [
        "README.md", "state.json", "state.safetensors",
    ]  # fmt: skip
    head = json.loads((tmp_path / "a" / "state.json").read_text())
    assert head["meta"]["layers"] == [1, 7] and head["fingerprint"] == head["meta"]["model"]
    code, said = run(
        "micro-vlm", "--add", tmp_path / "a", "--add", tmp_path / "a", "--out", tmp_path / "b"
    )
    one, two = State.load(tmp_path / "a"), State.load(tmp_path / "b")
    assert code == 0 and two.meta["tokens"] == 2 * one.meta["tokens"]
    assert torch.allclose(one.tensors["moment/1"], two.tensors["moment/1"])
    for wrong, words in (
        (("--layers", "x", "--corpus", texts), "cannot read --layers"),
        ((), "Give --corpus"),
        (("--corpus", texts, "--without", tmp_path / "no"), "a name a line"),
        (("--corpus", tmp_path / "nowhere"), "errata[corpus]"),
    ):
        code, said = run("micro-vlm", *wrong, "--out", tmp_path / "c")
        assert code == 2 and words in said and len(said.strip().splitlines()) == 1
