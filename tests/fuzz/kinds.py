"""The kinds of inputs: each makes one damaged input and the command that gets it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from errata.benchmarks import facts as facts_of_users
from errata.cli import main as errata
from errata.core import registry
from errata.core.config import current_names
from errata.core.figure import Bar, Bars, Figure, Findings, Table, Value
from errata.figures.plots import write_findings
from errata.testing.small_settings import SMALL_SETTINGS
from tests.e2e.test_mmedit import make as make_mmedit
from tests.endpoint import Reply
from tests.fuzz import damage

FACTS = Path(facts_of_users.__file__).parent / "example"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
MODEL = "micro-vlm"
QUICK = ("--editor", "ft_l", "--set", "steps=1")
#: an editor whose state is collected and kept
KEEPS = ("memit", *(w for k, v in SMALL_SETTINGS["memit"].items()
                    for w in ("--set", f"{k}={json.dumps(v)}")))  # fmt: skip
ASKED = ("--prompt", "What colour is the ring?", "--target", "green")


def _run(words: tuple[str, ...]) -> None:
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            errata(words)
    except SystemExit as e:
        assert e.code in (None, 0), said.getvalue()


@dataclass(frozen=True)
class Input:
    """A command. written: folders of the input that the command may write to."""

    words: tuple[str, ...]
    written: tuple[Path, ...] = ()
    loads: bool = False
    """Whether the command must load the model itself."""
    home: Path | None = None
    """ERRATA_HOME, if it is a damaged one."""
    reply: Callable[[dict[str, Any]], Reply] | None = None
    """What a server answers; its address stands for URL in the words."""


class Originals:
    """Undamaged inputs, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patches = sorted((FIXTURES / "patches").iterdir())
        self.states = sorted((FIXTURES / "states").iterdir())
        self.runs = []
        for archive in sorted((FIXTURES / "runs").glob("*.tar.gz")):
            with tarfile.open(archive) as tar:
                tar.extractall(folder / "runs", filter="data")
            self.runs.append(folder / "runs" / archive.name.removesuffix(".tar.gz"))
        self.model = folder / "model"
        self.analysis = folder / "analysis"
        self.facts = folder / "facts" / "facts.jsonl"
        bars = Bars("p", (Bar("a", Value(0.5, 0.4, 0.6), "changes"),))
        found = Findings(
            (Figure("one", "One", (bars,), 1),), (Table("one", ("a", "b"), ((1, "x"),)),), {"n": 3}
        )
        about = {"schema": 1, "analysis": "attention", "backbone": MODEL, "arguments": {"a": 1}}
        write_findings(found, self.analysis, "attention", about)
        make_mmedit(folder / "mmedit", 3)

    def bench(self, out: Path, editor: str, *words: str) -> tuple[str, ...]:
        """A short run over own facts, two of them for training."""
        if not self.facts.exists():
            shutil.copytree(FACTS, self.facts.parent)
            rows = [json.loads(line) for line in self.facts.read_text().splitlines()]
            rows += [{**row, "id": f"{row['id']} again", "split": "train"} for row in rows[:2]]
            self.facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ("bench", MODEL, "--editor", editor, *words, "--benchmark", f"facts:{self.facts}",
                "--protocol", "one_step", "--rows", "1", "--out", str(out))  # fmt: skip

    def ended(self) -> Path:
        """A finished run, and an ERRATA_HOME with what it and a run of another editor keep."""
        run, home = self.folder / "ended", self.folder / "home"
        if not run.exists():
            before, os.environ["ERRATA_HOME"] = os.environ.get("ERRATA_HOME"), str(home)
            try:
                _run(self.bench(self.folder / "other", *KEEPS))
                _run(self.bench(run, *QUICK[1:]))
            finally:
                os.environ.pop("ERRATA_HOME")
                if before is not None:
                    os.environ["ERRATA_HOME"] = before
        return run

    def save_model(self) -> None:
        """A tiny LLaVA in a folder."""
        from errata.testing import tiny_models

        backbone = tiny_models.llava(layers=2)
        backbone.model.save_pretrained(self.model)
        backbone.processor.save_pretrained(self.model)


def images(rng: random.Random, at: Path, made: Originals) -> Input:
    form = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))
    mode = rng.choice(("RGB", "RGBA", "L", "P", "1"))
    size = rng.choice(((1, 1), (28, 28), (300, 2), (64, 64)))
    buffer = io.BytesIO()
    Pillow.new(mode, size, 1).convert("RGB" if form in ("JPEG", "BMP") else mode).save(buffer, form)
    data = buffer.getvalue()
    path = at / rng.choice(("a.png", "b.jpg", "no ending", "naïve.gif"))
    path.write_bytes(damage.content(rng, data) if rng.random() < 0.85 else data)
    return Input(("ask", MODEL, "What is it?", "--image", str(path)))


def edits(rng: random.Random, at: Path, made: Originals) -> Input:
    words = ["edit", MODEL, *QUICK, "--prompt", damage.text(rng), "--target", damage.text(rng)]
    if rng.random() < 0.3:
        words += ["--subject", damage.text(rng)]
    return Input((*words, "--out", str(at / "out")), (at / "out",))


def edit_files(rng: random.Random, at: Path, made: Originals) -> Input:
    rows = [
        {"prompt": "What colour is it?", "target": "red", "id": "a"},
        {"prompt": "Who made it?", "target": "Corvin", "subject": "it", "old": None},
    ]
    path = at / "edits.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    damage.file(rng, path)
    each = ("--each",) if rng.random() < 0.3 else ()
    words = ("edit", MODEL, *QUICK, "--edits", str(path), *each, "--out", str(at / "out"))
    return Input(words, (at / "out",))


def patches(rng: random.Random, at: Path, made: Originals) -> Input:
    folder = damage.copied(rng.choice(made.patches), at / "patch")
    damage.folder(rng, folder)
    return Input(
        rng.choice(
            (
                ("patch", "show", str(folder)),
                ("patch", "show", str(folder), "--json"),
                ("patch", "verify", str(folder)),
                ("patch", "verify", str(folder), "--backbone", MODEL),
                ("ask", MODEL, "What colour is the ring?", "--patch", str(folder)),
            )
        )
    )


def states(rng: random.Random, at: Path, made: Originals) -> Input:
    source = rng.choice(made.states)
    folder = damage.copied(source, at / "state")
    damage.folder(rng, folder)
    editor = source.name.removesuffix("_bench")
    settings = _made_with(source, editor)
    sets = [w for k, v in settings.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    words = ("edit", MODEL, "--editor", editor, *sets, *ASKED, "--state", str(folder))
    return Input((*words, "--out", str(at / "out")), (at / "out",))


def _made_with(state: Path, editor: str) -> dict[str, Any]:
    """The settings that a state was made with."""
    head = json.loads((state / "state.json").read_text())
    return current_names(registry.load("editors", editor).Config, head["settings"])


def runs(rng: random.Random, at: Path, made: Originals) -> Input:
    source = rng.choice(made.runs)
    run = damage.copied(source, at / "run")
    for picture in sorted(run.glob("images/*/*.png"))[:-2]:
        picture.unlink()  # damage would mostly hit one of the many pictures
    damage.folder(rng, run)
    html = ("--html", str(at / "out.html"))
    words, written = rng.choice(
        (
            (("score", str(run)), (run,)),
            (("score", str(run), "--json"), (run,)),
            (("results", str(run)), ()),
            (("report", str(run), *html), (at / "out.html",)),
            (("report", str(run), "--vary", "lr", "--plots", str(at / "out")), (at / "out",)),
            (("compare", str(run), str(source)), ()),
            (("judge", str(run)), (run,)),
        )
    )
    return Input(words, written)


def analyses(rng: random.Random, at: Path, made: Originals) -> Input:
    folder = damage.copied(made.analysis, at / "analysis")
    damage.folder(rng, folder)
    html = at / "out.html"
    return Input(("report", "--analysis", str(folder), "--html", str(html)), (html,))


def models(rng: random.Random, at: Path, made: Originals) -> Input:
    if not made.model.exists():
        made.save_model()
    folder = damage.copied(made.model, at / "model")
    damage.folder(rng, folder)
    command = rng.choice((("ask", str(folder), "What is it?"), ("doctor", str(folder))))
    return Input(command, loads=True)


ODD_SETTINGS = (
    *("", "NaN", "Infinity", "-inf", "nan", "1e999", "1" * 5000, "[" * 5000, "null", "[]", "{}"),
    *('["x"]', "x" * 3000, "\x1b[2J", "\udcff", "é", " "),
)


def settings(rng: random.Random, at: Path, made: Originals) -> Input:
    editor = rng.choice(sorted({*registry.names("editors")} & {*SMALL_SETTINGS} - {"bridge"}))
    config = registry.load("editors", editor).Config
    sets: dict[str, Any] = dict(SMALL_SETTINGS[editor])
    state = next((s for s in made.states if s.name == editor), None)
    if state is not None:
        sets |= _made_with(state, editor)
    texts = {k: json.dumps(v) for k, v in sets.items()}
    defaults = {f.name: f.default for f in fields(config)}
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice((*defaults, "stepz"))
        texts[name] = _other(rng, defaults.get(name))
    picture = at / "ring.png"
    Pillow.new("RGB", (28, 28), "red").save(picture)
    words = ["edit", MODEL, "--editor", editor, *ASKED, "--image", str(picture)]
    words += [w for k, v in texts.items() for w in ("--set", f"{k}={v}")]
    if state is not None:
        words += ["--state", str(state)]
    return Input((*words, "--out", str(at / "out")), (at / "out",))


def _other(rng: random.Random, default: Any) -> str:
    """A value of the type of the default, at or beyond the end of its range; sometimes any."""
    if rng.random() < 0.3:
        return rng.choice(ODD_SETTINGS)
    if isinstance(default, bool):
        return rng.choice(("true", "false"))
    if isinstance(default, int):
        return rng.choice(("-1", "0", "1", "2", "-99", str(10**20)))
    if isinstance(default, float):
        return rng.choice(("-1", "0", "1", "-0.5", "0.5", "1e-30", "1e30", "1e300"))
    if isinstance(default, tuple):
        return rng.choice(("[]", "[0]", "[-1]", "[-99]", "[0, 0]", "[99]", '["mlp.up"]', '["x"]'))
    return rng.choice(("auto", "none", "x", "", *ODD_SETTINGS))


def data_files(rng: random.Random, at: Path, made: Originals) -> Input:
    which = rng.choice(("mmedit", "rows", "corpus", "published"))
    if which == "mmedit":
        folder = damage.copied(made.folder / "mmedit", at / "data")
        file = rng.choice(sorted(folder.glob("*.json")))
        damage.file(rng, file)
        verb = rng.choice(("audit", "verify"))
        return Input(("data", verb, "mmedit", "--root", str(folder)))
    path = at / "UniKE.json"
    rewrite = {"prompt": "{} is made by", "subject": "dax", "target_new": {"str": "Corvin"},
               "target_true": {"str": "Ulm"}}  # fmt: skip
    row = {"case_id": 1, "requested_rewrite": rewrite, "paraphrase_prompts": ["Who made dax?"]}
    path.write_text(json.dumps([row, row]))
    damage.file(rng, path)
    if which == "published":
        return Input(("data", rng.choice(("audit", "verify")), "unike_umm", "--root", str(at)))
    out = at / "out"
    if which == "rows":
        return Input(("data", "build-umm", "--rows", str(path), "--out", str(out)), (out,))
    words = ("stats", MODEL, "--corpus", str(path), "--layers", "0", "--out", str(out))
    return Input(words, (out,))


def facts(rng: random.Random, at: Path, made: Originals) -> Input:
    folder = damage.copied(FACTS, at / "facts")
    file = folder / "facts.jsonl"
    for _ in range(rng.choice((1, 1, 2))):
        others = sorted(folder.glob("images/*.png"))
        if file.is_file() and not file.is_symlink() and rng.random() < 0.85:
            damage.file(rng, file)
        else:
            damage.file(rng, rng.choice(others))
    name, out = f"facts:{file}", at / "out"
    words = rng.choice(
        (
            ("data", "verify", name),
            ("data", "audit", name),
            ("data", "verify", "facts", "--root", str(file)),
            ("bench", MODEL, *QUICK, "--benchmark", name, "--protocol", "one_step", "--out",
             str(out)),
        )
    )  # fmt: skip
    return Input(words, (out,))


def resumed(rng: random.Random, at: Path, made: Originals) -> Input:
    """A run that was stopped, or ended, then damaged, and is begun again."""
    run = damage.copied(made.ended(), at / "run")
    if rng.random() < 0.7:
        (run / "scores.json").unlink()
        done = (run / "done.jsonl").read_text().splitlines(keepends=True)
        (run / "done.jsonl").write_text("".join(done[: rng.randrange(len(done) + 1)]))
    damage.folder(rng, run)
    return Input(made.bench(run, *QUICK[1:]), (run,))


def caches(rng: random.Random, at: Path, made: Originals) -> Input:
    """What is kept in ERRATA_HOME."""
    made.ended()
    home, out = damage.copied(made.folder / "home", at / "home"), at / "out"
    damage.folder(rng, home)
    if rng.random() < 0.3:
        words = made.bench(out, *QUICK[1:])
    else:
        words = made.bench(out, *KEEPS)
    return Input(words, (out, home), home=home)


def replies(rng: random.Random, at: Path, made: Originals) -> Input:
    run = damage.copied(next(r for r in made.runs if r.name == "direct"), at / "run")
    for picture in sorted(run.glob("images/*/*.png"))[:-2]:
        picture.unlink()
    said = json.dumps({"observation": "a ring", "matches_target": True, "answer": "red"})
    whole = {"choices": [{"message": {"content": said}}], "usage": {"total_tokens": 1}}
    what = rng.random()
    if what < 0.3:
        text = json.dumps(damage.value(rng, whole))
    elif what < 0.6:
        inner = json.dumps(damage.value(rng, json.loads(said)))
        whole["choices"] = [{"message": {"content": rng.choice((inner, *damage.FILES))}}]
        text = json.dumps(whole)
    elif what < 0.8:
        text = rng.choice(damage.FILES)
    else:
        text = damage.content(rng, json.dumps(whole).encode()).decode("latin-1")
    status = rng.choice((200, 200, 200, 200, 204, 301, 400, 401, 404, 418, 599))
    headers = rng.choice(({}, {}, {"Retry-After": "x"}, {"Content-Type": "\x7f"}))
    # a server that is busy is asked again after a pause: not here
    model = ("--endpoint", "URL", "--model", "m")
    mode = rng.choice(("criterion", "blind"))
    judge = ("judge", str(run), *model, "--mode", mode)
    build = ("data", "build-umm", *model, "--count", "1", "--category", "color", "--out",
             str(at / "out"))  # fmt: skip
    return Input(
        rng.choice((judge, judge, build)),
        (run, at / "out"),
        reply=lambda body: (status, text, headers),
    )


def outputs(rng: random.Random, at: Path, made: Originals) -> Input:
    foreign = at / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    (at / "loop").symlink_to("loop")
    (at / "dangling").symlink_to("nowhere/at/all")
    out = rng.choice(
        (
            *(foreign, foreign / "letter.txt", foreign / "letter.txt" / "below", at / "loop"),
            *(Path("/dev/full"), Path("/dev/null"), Path("/proc/self/x"), Path("/sys/x")),
            *(at / ("x" * 300), at / ("y" * 250), at / ("é" * 120), at / "dangling", at / "\udcff"),
            *(at / "a" / "b" / "c", Path("/dev/full/x"), at / "-", at / "line\nbreak", at / " "),
        )
    )
    run = rng.choice(made.runs)
    state = next(s for s in made.states if s.name == "mend")
    mend = [w for k, v in SMALL_SETTINGS["mend"].items() for w in ("--set", f"{k}={json.dumps(v)}")]
    words = rng.choice(
        (
            ("edit", MODEL, *QUICK, *ASKED, "--out", str(out)),
            ("edit", MODEL, *QUICK, *ASKED, "--each", "--out", str(out)),
            ("report", str(run), "--html", str(out)),
            ("report", str(run), "--vary", "lr", "--plots", str(out)),
            ("draw", MODEL, "a ring", "--out", str(out)),
            ("draw", MODEL, "a ring", "--out", f"{out}.png"),
            ("stats", MODEL, "--add", str(state), "--add", str(state), "--out", str(out)),
            ("data", "build-umm", "--rows", str(at / "none.json"), "--out", str(out)),
            ("bench", "no/model", *QUICK, "--benchmark", "microworld:vqa", "--protocol",
             "one_step", "--out", str(out)),
            ("analyze", "attention", "no/model", "--out", str(out), "--limit", "1"),
            ("prepare", "no/model", "--editor", "mend", *mend, "--benchmark", "mmedit:vqa",
             "--root", str(made.folder / "mmedit"), "--out", str(out)),
        )
    )  # fmt: skip
    inside = (out, Path(f"{out}.png"), at / "nowhere") if out != foreign else ()
    if "--plots" in words:  # figures of several runs may go into one folder
        inside += tuple(out / f"vary-lr.{ending}" for ending in ("csv", "json", "svg"))
    return Input(words, inside)


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        *(images, edits, edit_files, patches, states, runs, analyses, models, settings),
        *(data_files, facts, resumed, caches, replies, outputs),
    )
}
