"""The command line on a small random-weight LLaVA in a folder: every command that needs a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image as Pillow

from errata.cli import main
from errata.core.files import read_json
from tests.short import short_microworld

FIT = ("--editor", "ft_l", "--set", "steps=80", "--set", "lr=0.05")
QUESTION = "What colour is the ring?"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def errata(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> Callable[..., Ran]:
    monkeypatch.setenv("ERRATA_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module", autouse=True)
def few_cases() -> Iterator[None]:
    with short_microworld(train=40, eval=12):
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    folder = tmp_path_factory.mktemp("model")
    backbone = tiny.llava()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Pillow.new("RGB", (28, 28), "red").save(path)
    return path


def test_an_edit_is_written_applied_and_gone_again(errata, model, picture, tmp_path):
    patch = tmp_path / "patch"
    ask = ("ask", model, "--image", picture, QUESTION)
    before = errata(*ask)
    edit = ("edit", model, *FIT, "--image", picture, "--prompt", QUESTION, "--target", "green")
    made = errata(*edit, "--out", patch)
    assert made.code == 0, made.err
    assert f"patch written to {patch}" in made.out
    assert errata(*ask, "--patch", patch).out.strip() == "green"
    assert errata(*ask).out == before.out != "green\n"
    names = {p.name for p in patch.iterdir()}
    assert names == {"patch.json", "patch.safetensors", "edits.jsonl", "README.md"}
    edits = [json.loads(line) for line in (patch / "edits.jsonl").read_text().splitlines()]
    assert edits[0]["prompt"]["segments"][0]["sha256"]
    answer = json.loads(errata(*ask, "--patch", patch, "--json").out)
    assert (answer["answer"], answer["patches"]) == ("green", [str(patch)])
    before_the_repeat = (patch / "patch.json").read_bytes()
    again = errata(*edit, "--out", patch)  # a patch is replaced only if one asks for it
    assert again.code == 2 and "--force" in again.err
    assert (patch / "patch.json").read_bytes() == before_the_repeat
    assert errata(*edit, "--out", patch, "--force").code == 0
    shown = json.loads(errata("patch", "show", patch, "--json").out)
    assert (shown["header"]["editor"], len(shown["edits"])) == ("ft_l", 1)
    assert "green" in errata("patch", "show", patch).out


def test_a_patch_is_verified(errata, model, picture, tmp_path):
    patch, image = tmp_path / "patch", tmp_path / "copy.png"
    image.write_bytes(picture.read_bytes())
    text = ("--image", image, "--prompt", QUESTION, "--target", "green")
    assert errata("edit", model, "--editor", "ft_l", *text, "--out", patch).code == 0
    good = errata("patch", "verify", patch, "--backbone", model)
    assert good.code == 0, good.err
    assert "undamaged, 1 edit, " in good.out
    assert "1 of 1 edited question is answered with their target" in good.out
    Pillow.new("RGB", (28, 28), "blue").save(image)
    for of_model in ((), ("--backbone", model)):
        changed = errata("patch", "verify", patch, *of_model)
        assert "has changed since" in changed.out
        assert (changed.code, changed.err.count("\n")) == (3, 1)
    blob = bytearray((patch / "patch.safetensors").read_bytes())
    blob[-1] ^= 1
    (patch / "patch.safetensors").write_bytes(bytes(blob))
    damaged = errata("patch", "verify", patch)
    assert damaged.code == 2
    assert "does not match the hash" in damaged.err


def test_patches_of_several_facts_are_made_and_asked_together(errata, model, picture, tmp_path):
    facts, out = tmp_path / "facts.jsonl", tmp_path / "fixes"
    rows = ({"prompt": QUESTION, "image": str(picture), "target": "green", "locality": "Which?"},
            {"prompt": "New thing", "target": "red"})  # fmt: skip
    facts.write_text("\n".join(map(json.dumps, rows)))
    edit = ("edit", model, "--editor", "ft_l", "--edits", facts, "--out", out)
    assert errata(*edit, "--together").code == 2  # of --each
    made = errata(*edit, "--each", "--together")
    notes = json.loads((out / "0002/patch.json").read_text())["header"]["notes"]
    assert len(notes["on_top_of"]) == 1
    first = [(out / n / "patch.json").read_bytes() for n in ("0001", "0002")]
    assert errata(*edit, "--each", "--together").code == made.code  # keeps what is there
    assert [(out / n / "patch.json").read_bytes() for n in ("0001", "0002")] == first
    apart = errata(*edit, "--each")
    assert (apart.code, "other settings" in apart.err) == (2, True)
    ask = ("patch", "verify", "--backbone", model, "--facts", facts)
    both = errata(*ask, out / "0001", out / "0002")
    assert ("2 of 2 edited questions" in both.out) == (made.code == 0)
    assert "of 2 edited questions are answered with their target" in both.out
    assert "1 question of T-locality" in both.out
    assert "1 of 1 edited question " in errata(*ask, out / "0001").out
    folder = errata("patch", "verify", out)
    assert (folder.code, "0001, 0002" in folder.err) == (2, True)
    assert errata("patch", "verify", out / "0001", "--facts", facts).code == 2  # asks no model


def test_an_edit_that_misses_its_target_is_written_and_said(errata, model, tmp_path):
    text = ("--prompt", QUESTION, "--target", "green")
    few = ("--editor", "ft_l", "--set", "lr=1e-6", "--set", "steps=1")
    made = errata("edit", model, *few, *text, "--out", tmp_path / "patch")
    assert made.code == 3
    assert made.err.count("\n") == 1
    assert f"1 of 1 edit missed the target: '{QUESTION}' is answered" in made.err
    assert f"{tmp_path / 'patch'} is written all the same" in made.err
    checked = errata("patch", "verify", tmp_path / "patch", "--backbone", model)
    assert (checked.code, checked.err.count("\n")) == (3, 1)
    assert "does not hold" in checked.err
    each = errata("edit", model, *few, *text, "--each", "--out", tmp_path / "each")
    assert each.code == 3


@pytest.mark.filterwarnings("always")
def test_an_edit_on_top_of_a_patch(errata, model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    ask = ("ask", model, QUESTION)
    other = ("--prompt", "Which thing is blue?", "--target", "blue")
    assert errata("edit", model, *FIT, *other, "--out", first).code == 0
    asked = (*FIT, "--prompt", QUESTION, "--target", "green")
    made = errata("edit", model, *asked, "--patch", first, "--out", second)
    assert made.code == 0, made.err
    head = json.loads(errata("patch", "show", second, "--json").out)["header"]
    (below,) = head["notes"]["on_top_of"]
    assert f"origin: {below}" in errata("patch", "show", first).out
    assert f"Found on top of the patch `{below}`" in (second / "README.md").read_text()
    both = errata(*ask, "--patch", first, "--patch", second)
    assert (both.out, both.err) == ("green\n", "")
    alone = errata(*ask, "--patch", second)
    assert alone.code == 0
    assert f"errata: the patch of '{QUESTION}' was found on top of patch {below}" in alone.err


def test_one_patch_for_contradictory_edits_is_refused(errata, model, tmp_path):
    file = tmp_path / "edits.jsonl"
    rows = [{"prompt": QUESTION, "target": t} for t in ("green", "blue")]
    file.write_text("\n".join(map(json.dumps, rows)))
    refused = errata("edit", model, *FIT, "--edits", file, "--out", tmp_path / "out")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "edits '0001' and '0002' want 'green' and 'blue'" in refused.err
    assert errata("edit", model, *FIT, "--edits", file, "--each", "--out", tmp_path / "e").code == 0
    for order, last in ((("0001", "0002"), "blue"), (("0002", "0001"), "green")):
        live = [word for name in order for word in ("--patch", tmp_path / "e" / name)]
        assert errata("ask", model, *live, QUESTION).out == f"{last}\n"


def test_an_editor_is_chosen_and_hits(errata, model, picture, tmp_path):
    for name, image in (("text", ()), ("image", ("--image", picture))):
        asked = (*image, "--prompt", QUESTION, "--target", "green")
        made = errata("edit", model, *asked, "--out", tmp_path / name)
        assert made.code == 0, made.err
        chosen = f"editor ft_l: it needs no prepared state, edits {name} facts, and fits"
        assert chosen in made.out
        said = errata("ask", model, "--patch", tmp_path / name, *image, QUESTION)
        assert said.out == "green\n"
    lost = errata("edit", model, *asked, "--set", "steps=3", "--out", tmp_path / "other")
    assert lost.code == 2
    assert "belong to an editor" in lost.err


def test_a_patch_is_refused_by_another_model(errata, model, tmp_path):
    from tests import tiny

    other = tmp_path / "other"
    backbone = tiny.llava(layers=2)
    backbone.model.save_pretrained(other)
    backbone.processor.save_pretrained(other)
    patch = tmp_path / "patch"
    edit = ("edit", model, "--editor", "ft_l", "--prompt", QUESTION, "--target", "green")
    assert errata(*edit, "--out", patch).code == 0
    refused = errata("ask", other, "--patch", patch, QUESTION)
    assert refused.code == 2
    assert "was made for" in refused.err
    assert refused.err.count("\n") == 1


def test_one_patch_per_line_and_one_for_all(errata, model, picture, tmp_path):
    rows = [
        {"prompt": QUESTION, "target": "green", "image": str(picture)},
        {"prompt": "What is the shape of the thing?", "target": "red ring"},
        {"prompt": "Which thing is blue?", "target": "blue"},
    ]
    file = tmp_path / "edits.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    each = errata("edit", model, *FIT, "--edits", file, "--each", "--out", tmp_path / "each")
    assert each.code == 0, each.err
    folders = sorted(p.name for p in (tmp_path / "each").iterdir())
    assert folders == ["0001", "0002", "0003"]
    for folder, row in zip(folders, rows, strict=True):
        image = ("--image", row["image"]) if "image" in row else ()
        patch = ("--patch", tmp_path / "each" / folder)
        assert errata("ask", model, *patch, *image, row["prompt"]).out.strip() == row["target"]
    assert errata("edit", model, *FIT, "--edits", file, "--out", tmp_path / "joint").code == 0
    shown = json.loads(errata("patch", "show", tmp_path / "joint", "--json").out)
    assert [e["target"] for e in shown["edits"]] == [row["target"] for row in rows]
    again = errata("edit", model, *FIT, "--edits", file, "--each", "--out", tmp_path / "each")
    assert again.code == 0, again.err  # patches that are there are kept
    other = errata("edit", model, *FIT, "--edits", file, "--seed", 1, "--each", "--out",
                   tmp_path / "each")  # fmt: skip
    assert other.code == 2 and "holds a patch of another edit" in other.err


def test_what_is_not_a_patch_or_a_model(errata, model, tmp_path):
    no_patch = errata("ask", model, "--patch", tmp_path, QUESTION)
    assert no_patch.code == 2
    assert "is not a patch" in no_patch.err
    no_model = errata("ask", tmp_path, QUESTION)
    assert no_model.code == 2
    assert "no config.json" in no_model.err
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    other = errata("ask", tmp_path, QUESTION)
    assert other.code == 2
    assert "is of type 'vit'" in other.err
    close = errata("ask", "micro-vml", QUESTION)
    assert close.code == 2
    assert "Did you mean the bundled 'micro-vlm'?" in close.err


def test_an_answer_that_is_cut_off_is_said_to_be(errata, model):
    ran = errata("ask", model, "--max-tokens", "1", QUESTION)
    assert ran.code == 0
    assert ("cut off after 1 tokens" in ran.err) == bool(ran.out.strip())


def test_doctor_finds_the_sites_and_equal_logits(errata, model):
    ran = errata("doctor", model, "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["own forward"]["equal"]
    assert facts["missing"] == []
    assert facts["sites"]["text.{i}.mlp.down"].startswith("4 x ")
    assert facts["sample"]["of them image tokens"] == 4
    assert "text.{i}.attn.q" in errata("doctor", model).out


def test_doctor_says_what_an_edit_takes(errata, model):
    ran = errata("doctor", model, "--editor", "memit", "--memory", "20MB", "--json")
    assert ran.code == 0, ran.err
    memory = json.loads(ran.out)["memory"]
    assert memory["editor"] == "memit" and memory["fits"]
    assert memory["memory of a batch"] == "20 MB"
    assert 0 < memory["edits in a batch of 16"] <= 16
    assert memory["state"].endswith("kB"), "known before it is collected"
    told = errata("doctor", model, "--editor", "serac")
    assert told.code == 2 and "works from a state" in told.err


BENCH = ("--benchmark", "microworld:vqa", "--limit", "4", "--rows", "4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("protocol", ["one_step", "sequential:2"])
def test_bench_score_report_compare(errata, model, runs, protocol):
    def bench(name: str, *more: str) -> Ran:
        where = runs / f"{name}-{protocol.partition(':')[0]}"
        words = ("--protocol", protocol, *BENCH, "--out", where, *more)
        return errata("bench", model, "--editor", name, *words)

    made = bench("ft_l", "--set", "steps=5")
    assert made.code == 0, made.err
    run = runs / f"ft_l-{protocol.partition(':')[0]}"
    scores = (run / "scores.json").read_bytes()
    keys = read_json(run / "scores.json")["metrics"]
    for kind in ("reliability", "t_generality", "m_generality", "t_locality", "m_locality"):
        assert {f"{kind}.exact", f"{kind}.token"} <= set(keys)

    assert bench("ft_l", "--set", "steps=5").code == 0  # nothing left to do
    assert (run / "scores.json").read_bytes() == scores
    other = bench("ft_l", "--set", "steps=6")
    assert other.code == 2
    assert "holds another run" in other.err

    (run / "scores.json").unlink()
    assert errata("score", run).code == 0
    assert (run / "scores.json").read_bytes() == scores
    assert json.loads(errata("score", run, "--json").out)["schema"] == 1

    assert bench("ft_v", "--set", "steps=5").code == 0
    second = runs / f"ft_v-{protocol.partition(':')[0]}"
    compared = errata("compare", run, second, "--json")
    assert compared.code == 0, compared.err
    planned = read_json(run / "plan.json")["cases"]
    assert json.loads(compared.out)["cases"] == len(planned) >= 2
    assert errata("compare", run, second).code == 0

    html = runs / f"{protocol.partition(':')[0]}.html"
    assert errata("report", run, second, "--html", html).code == 0
    assert "<html" in html.read_text(encoding="utf-8")
    assert errata("report", run, "--scorer", "exakt").code == 2


def test_what_is_not_a_run(errata, tmp_path):
    for command in (("score", tmp_path), ("report", tmp_path), ("compare", tmp_path, tmp_path)):
        ran = errata(*command)
        assert ran.code == 2, command
        assert ran.err.count("\n") == 1


def test_prepare_writes_a_state_that_bench_takes(errata, model, tmp_path):
    nothing = errata(
        "prepare", model, "--editor", "ft_l", "--benchmark", "microworld:vqa", "--out", tmp_path
    )
    assert nothing.code == 0, nothing.err
    assert "needs no preparation" in nothing.out
    state = tmp_path / "state"
    words = ("--editor", "ike", "--set", "encoder=backbone", "--set", "corpus=20")
    made = errata("prepare", model, *words, "--benchmark", "microworld:vqa", "--out", state)
    assert made.code == 0, made.err
    digest = made.out.split()[1]
    made = errata("prepare", model, *words, "--benchmark", "microworld:vqa", "--limit", "1000000")
    assert made.code == 0, made.err
    text = ("--prompt", QUESTION, "--target", "green")
    for given in (state, digest, digest[:8]):
        out = tmp_path / f"patch-{Path(given).name}"
        ran = errata("edit", model, *words, *text, "--state", given, "--out", out)
        assert ran.code in (0, 3), ran.err  # a model with random weights does not read the prompt
    wrong = errata("edit", model, *FIT, *text, "--state", state, "--out", tmp_path / "x")
    assert wrong.code == 2
    assert "holds a state of editor 'ike'" in wrong.err


def test_data_commands(errata, tmp_path):
    # microworld's takes 10 s; tests/unit/benchmarks/test_microworld.py looks into it
    assert errata("data", "audit", "unike_umm", "--json").code == 0
    missing = errata("data", "verify", "mmedit", "--root", tmp_path)
    assert missing.code == 2
    assert missing.err.count("\n") == 1
