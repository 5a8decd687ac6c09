"""Patches go to another machine: in a folder with their pictures, and over the hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import errata
from errata.cli import main
from errata.core.types import Image
from errata.io.images import load_image
from errata.io.patch_card import MARK
from tests import hub as stub

SPEC = (
    "microworld:shape=ring,colour=blue,pattern=striped,accent=black,size=small,position=centre,"
    "background=grey,seed=1"
)
QUESTION = "What colour is the ring?"
REPO = "me/purple-ring"

pytestmark = [
    pytest.mark.trained,
    # of huggingface_hub about httpx
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command: exit code, stdout, stderr; an error is one line."""

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        said = capsys.readouterr()
        code = int(ended.value.code or 0)
        if code == 2:
            assert len(said.err.strip().splitlines()) == 1 and not said.out
        return code, said.out, said.err

    return command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with patches of a picture that is no more: `with`, `without`, `each`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load_image(Image(SPEC)).save("ring.png")
        for out, more in (("with", ["--with-images"]), ("without", [])):
            with pytest.raises(SystemExit) as ended:
                main(
                    ["edit", "micro-vlm", "--editor", "ft_l", "--image", "ring.png", "--prompt",
                     QUESTION, "--target", "purple", "--out", out, *more]
                )  # fmt: skip
            assert not ended.value.code
        Path("ring.png").unlink()
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it on "another machine", which is the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stub.Hub]:
    with stub.serving(tmp_path / "cache", monkeypatch) as serving:
        monkeypatch.setenv("HF_TOKEN", stub.TOKEN)
        yield serving


def test_a_moved_patch_is_verified_with_its_pictures_and_not_without(here: Path, run: Run) -> None:
    code, out, _ = run("patch", "verify", "micro-vlm", "with")
    assert code == 0 and "1 of 1 edited question is answered with their target" in out
    assert f"held: '{QUESTION}' is answered 'purple'" in out
    assert run("patch", "verify", "with", "--backbone", "micro-vlm")[1] == out
    code, out, err = run("patch", "verify", "micro-vlm", "without")
    assert code == 3 and "no such file" in err and "0 of 1" in out
    (picture,) = (here / "with" / "images").iterdir()
    load_image(Image(SPEC.replace("blue", "red"))).save(picture)
    code, out, err = run("patch", "verify", "with")
    assert code == 3 and "has changed since the edit was made" in err


def test_the_examples_of_the_card_run(
    here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The question and the picture are the reader's own."""
    card = Path("with/README.md").read_text()
    (picture,) = Path("with/images").iterdir()
    own = card.replace("your question", QUESTION).replace("picture.png", str(picture))
    (session,) = re.findall(r"^```python\n(.*?)^```$", own, re.DOTALL | re.M)
    capsys.readouterr()
    exec(compile(session, "card", "exec"), {})
    assert capsys.readouterr().out == "purple\n"
    (commands,) = re.findall(r"^```\n(errata .*?)^```$", own, re.DOTALL | re.M)
    asked, verified = (run(*shlex.split(line)[1:]) for line in commands.splitlines())
    assert asked[:2] == (0, "purple\n") and verified[0] == 0


def test_each_patch_of_many_has_its_pictures_and_is_kept(here: Path, run: Run) -> None:
    facts = []
    for colour in ("red", "green"):
        load_image(Image(SPEC.replace("blue", colour))).save(f"{colour}.png")
        facts.append({"prompt": QUESTION, "target": "purple", "image": f"{colour}.png"})
    Path("facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    words = ("edit", "micro-vlm", "--editor", "ft_l", "--edits", "facts.jsonl", "--each",
             "--with-images", "--out", "each")  # fmt: skip
    assert run(*words)[0] in (0, 3)
    times = {f: f.stat().st_mtime_ns for f in Path("each").rglob("*.*")}
    assert sum(f.suffix == ".png" for f in times) == 2
    assert run(*words)[0] in (0, 3)
    assert {f: f.stat().st_mtime_ns for f in Path("each").rglob("*.*")} == times


def test_which_argument_is_the_model(here: Path, run: Run) -> None:
    shutil.copytree("with", "micro-umm")  # a patch in a folder with a model's name is a patch
    assert "micro-umm: undamaged" in run("patch", "verify", "micro-umm", "with")[1]
    Path("empty").mkdir()
    for words, said in {
        ("micro-vlm",): "'micro-vlm' is a model. Give the patches behind it",
        ("with", "micro-vlm"): "Name it first: errata patch verify micro-vlm DIR",
        ("micro-vlm", "with", "--backbone", "micro-vlm"): "two models are given",
        ("micro-vlm", "micro-vlm"): "two models are given",
        ("empty", "with"): "neither a patch nor a model",
        ("wiht", "with"): "The first of several arguments is the model, unless it is a patch",
        ("micro-vlm", "empty"): "empty is not a patch",
        ("wiht",): "wiht is not a patch",
        ("me/wiht",): "was not downloaded before",
        ("with", "--facts", "f"): "--facts asks a model",
        ("hf://x", "with"): "names no repository of the Hub",
    }.items():
        code, _, err = run("patch", "verify", *words)
        assert code == 2 and said in err, (words, err)


def test_a_patch_goes_over_the_hub_and_answers_as_before(
    here: Path, run: Run, hub: stub.Hub
) -> None:
    code, out, _ = run(
        "patch", "push", "with", REPO, "--license", "cc0-1.0", "--backbone", "micro-vlm",
        "--private", "--message", "The ring",
    )  # fmt: skip
    assert code == 0 and "pictures of the facts that were uploaded: 1" in out
    repo = hub.repos[REPO]
    there = repo.files()
    assert repo.private and repo.messages[-1] == "The ring"
    for file in Path("with").rglob("*.*"):
        if file.is_file() and file.name != "README.md":
            assert there[str(file.relative_to("with"))] == file.read_bytes()
    card = there["README.md"].decode()
    assert 'license: "cc0-1.0"' in card and f'errata.load_patch("{REPO}", model)' in card
    assert "1 of 1 edited question is answered with their target" in card
    (picture,) = Path("with/images").iterdir()
    asked = ("ask", "micro-vlm", QUESTION, "--image", picture, "--patch")
    for name in (REPO, f"{REPO}@main", f"hf://{REPO}"):
        assert run(*asked, name)[:2] == run(*asked, "with")[:2] == (0, "purple\n")
    assert run("patch", "verify", "micro-vlm", REPO)[0] == 0
    assert run("patch", "show", REPO)[1].count(QUESTION) == 1
    assert "numbers and settings of the patches: the same" in run("patch", "diff", REPO, "with")[1]
    assert run("patch", "squash", REPO, "--out", "one")[0] == 0
    assert run("patch", "export-peft", REPO, "--out", "adapter")[0] == 0
    assert run("patch", "merge", "micro-vlm", REPO, "--out", "merged")[0] == 0
    assert run("ask", "merged", QUESTION, "--image", picture)[:2] == (0, "purple\n")


def test_a_card_that_somebody_wrote_is_kept(here: Path, run: Run, hub: stub.Hub) -> None:
    card = Path("without/README.md")
    card.write_text(card.read_text().replace(MARK, "").replace("## Facts", "## My facts"))
    code, out, _ = run("patch", "push", "without", REPO)
    assert code == 0 and "uploaded: none" in out
    assert hub.repos[REPO].files()["README.md"] == card.read_bytes()
    code, _, err = run("patch", "push", "without", REPO, "--license", "mit")
    assert code == 2 and "Write the license" in err


def test_what_is_not_pushed(here: Path, run: Run, hub: stub.Hub) -> None:
    for words, said in {
        ("nosuch", REPO): "nosuch is not a patch",
        ("with", "a/b/c"): "names no repository",
        ("with", REPO, "--license", "my license"): "SPDX name",
        ("with", REPO, "--revision", "a..b/"): "not the name of a branch",
    }.items():
        code, _, err = run("patch", "push", *words)
        assert code == 2 and said in err, (words, err)
    code, _, err = run("patch", "push", "without", REPO, "--backbone", "micro-vlm")
    assert code == 3 and "does not hold and is not uploaded" in err
    (picture,) = Path("with/images").iterdir()
    picture.unlink()
    picture.symlink_to("/etc/hostname")
    assert "leads out of the patch's folder" in run("patch", "push", "with", REPO)[2]
    picture.unlink()
    assert "is not there" in run("patch", "push", "with", REPO)[2]
    assert not hub.repos


def test_what_the_hub_has_not_is_one_line(here: Path, run: Run, hub: stub.Hub) -> None:
    hub.repository("me/lora", {"adapter_config.json": b"{}"})
    for name, said in {
        "me/nosuch": "no repository me/nosuch on the Hub",
        "me/lora": "errata patch import-peft",
        "me/lora@v9": "has no revision 'v9'",
    }.items():
        code, _, err = run("ask", "micro-vlm", QUESTION, "--patch", name)
        assert code == 2 and said in err
    hub.fails = 401
    assert run("ask", "micro-vlm", QUESTION, "--patch", "me/lora")[0] == 2


def test_the_python_way(here: Path, hub: stub.Hub) -> None:
    model = errata.load("micro-vlm")
    patch = errata.load_patch("with", model)
    patch.push_to_hub(REPO, with_images=True)
    again = errata.Patch.from_pretrained(REPO, model)
    assert all(c.kept for c in errata.verify(model, again)) and again.origins == patch.origins
