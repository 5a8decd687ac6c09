"""Patches on the hub, with a local stub of it: the same bytes and answers, or one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import errata
from errata.core.errors import BadEndpoint, BadPatch, BadSpec, FingerprintMismatch, UserError
from errata.core.patch import Header, Patch
from errata.core.types import Edit, Prompt
from errata.io.hub import HubName, hub_name
from errata.io.patch_folder import FILES
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from tests import hub as stub
from tests import tiny

REPO = "me/purple-ring"

# of huggingface_hub about httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stub.Hub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    with stub.serving(tmp_path / "cache", monkeypatch) as serving:
        monkeypatch.setenv("HF_TOKEN", stub.TOKEN)
        yield serving


def logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def made(model: tiny.HfVlm, answer: str = "purple", picture: str | None = None) -> Delta:
    rng = torch.Generator().manual_seed(len(answer))
    part = {"A": torch.randn(2, 64, generator=rng), "B": torch.randn(32, 2, generator=rng)}
    head = Header("hand", backbone=model.name, fingerprint=model.fingerprint(), dtype="float32")
    edit = Edit(Prompt.of("What colour is it?", picture), answer, id="ring")
    return Delta({"text.1.mlp.down": part}).with_header(head, [edit]).requires_grad_(False)


def logits(model: tiny.HfVlm, patch: Patch) -> torch.Tensor:
    with model.applied(patch):
        return model.logits(model.encode([Prompt.of("What colour is it?")]))


def refused(error: type[UserError], source: Any = REPO, **options: Any) -> str:
    with pytest.raises(error) as raised:
        errata.load_patch(source, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_patch_comes_back_with_its_bytes_and_answers(
    model: tiny.HfVlm, hub: stub.Hub, tmp_path: Path
) -> None:
    patch = made(model)
    url = patch.save_pretrained("purple-ring", push_to_hub=True, repo_id=REPO, license="mit")
    assert url is not None and url.startswith(f"{hub.url}/{REPO}/commit/")
    there = hub.repos[REPO].files()
    assert set(there) == {*FILES, "README.md", ".gitattributes"}
    for name in FILES:
        assert there[name] == Path("purple-ring", name).read_bytes()
    for loaded in (
        errata.load_patch(REPO, model),
        errata.Patch.from_pretrained(REPO, model, revision="main"),
        Delta.from_pretrained(f"hf://{REPO}@{hub.repos[REPO].branches['main']}", model),
    ):
        assert loaded.origins == patch.origins and loaded.edits == patch.edits
        assert torch.equal(logits(model, loaded), logits(model, patch))
    assert not torch.equal(
        logits(model, patch), model.logits(model.encode([patch.edits[0].prompt]))
    )


def test_a_branch_is_made_and_read(model: tiny.HfVlm, hub: stub.Hub) -> None:
    made(model).push_to_hub(REPO, private=True, commit_message="First")
    made(model, "red").push_to_hub(REPO, revision="red")
    assert hub.repos[REPO].private and hub.repos[REPO].messages[1] == "First"
    assert errata.load_patch(REPO, model).edits[0].target == "purple"
    for source, revision in ((f"{REPO}@red", None), (REPO, "red"), (f"hf://{REPO}@red", "red")):
        assert errata.load_patch(source, model, revision=revision).edits[0].target == "red"
    url = made(model, "blue").push_to_hub(REPO, create_pr=True)
    assert url.endswith("/discussions/1")
    assert errata.load_patch(REPO, model).edits[0].target == "purple"
    assert errata.load_patch(f"{REPO}@refs/pr/1", model).edits[0].target == "blue"


def test_without_a_user_it_is_the_one_who_is_logged_in(model: tiny.HfVlm, hub: stub.Hub) -> None:
    made(model).save_pretrained("ring", push_to_hub=True)
    card = hub.repos["me/ring"].files()["README.md"].decode()
    assert 'errata.load_patch("me/ring", model)' in card
    assert 'errata.load_patch("ring", model)' in Path("ring/README.md").read_text()
    with pytest.raises(BadEndpoint, match="401"):
        made(model).push_to_hub("ring", token="hf_wrong")


def test_nothing_is_uploaded_to_a_repository_that_is_more_public_than_asked(
    model: tiny.HfVlm, hub: stub.Hub
) -> None:
    hub.repository(REPO, {".gitattributes": b""})
    with pytest.raises(BadSpec, match="exists and is public"):
        made(model).push_to_hub(REPO, private=True)
    assert set(hub.repos[REPO].files()) == {".gitattributes"}
    made(model).push_to_hub(REPO, private=False)
    assert set(FILES) < set(hub.repos[REPO].files())


def test_pictures_travel_only_when_asked_to_and_go_when_they_are_left_out(
    model: tiny.HfVlm, hub: stub.Hub, pictures: list[str], tmp_path: Path
) -> None:
    patch = made(model, picture=pictures[0])
    assert "images" not in " ".join((patch.push_to_hub(REPO), *hub.repos[REPO].files()))
    patch.push_to_hub(REPO, with_images=True)
    (name,) = [f for f in hub.repos[REPO].files() if f.startswith("images/")]
    assert hub.repos[REPO].files()[name] == Path(pictures[0]).read_bytes()
    loaded = errata.load_patch(REPO, model)
    (image,) = loaded.edits[0].prompt.images
    assert Path(image.uri).read_bytes() == Path(pictures[0]).read_bytes()
    assert loaded.origins == patch.origins
    patch.push_to_hub(REPO)
    assert name not in hub.repos[REPO].files()


def test_without_a_network_an_earlier_download_is_taken(
    model: tiny.HfVlm, hub: stub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(model).push_to_hub(REPO)
    assert "not downloaded before" in refused(BadPatch, local_files_only=True)
    errata.load_patch(REPO)
    asked = len(hub.requests)
    assert errata.load_patch(REPO, model, local_files_only=True).edits[0].target == "purple"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert errata.load_patch(REPO, model).edits[0].target == "purple"
    assert len(hub.requests) == asked
    assert "was not downloaded before" in refused(BadPatch, "me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fails = 500
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between repeated requests
    assert errata.load_patch(REPO, model).edits[0].target == "purple"
    assert "fails for me/other (500)" in refused(BadEndpoint, "me/other")


def test_what_the_hub_refuses_is_one_line(
    model: tiny.HfVlm, hub: stub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(model).push_to_hub(REPO)
    assert "no revision 'v2'" in refused(BadPatch, revision="v2")
    assert "no repository me/other on the Hub" in refused(BadPatch, "me/other")
    hub.repos[REPO].gated = True
    logged_out(monkeypatch)
    assert "is gated" in refused(BadEndpoint)
    hub.repos[REPO].gated, hub.repos[REPO].private = False, True
    assert "hf auth login" in refused(BadPatch)
    with pytest.raises(BadEndpoint, match=r"401.*hf auth login"):
        made(model).push_to_hub(REPO)
    with pytest.raises(BadEndpoint, match="HF_TOKEN"):
        made(model).push_to_hub(REPO, token="hf_wrong")
    hub.fails = 503
    with pytest.raises(BadEndpoint, match=r"fails for me/purple-ring \(503\)"):
        made(model).push_to_hub(REPO, token=stub.TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadEndpoint, match="cannot be reached"):
        made(model).push_to_hub(REPO)


def test_a_repository_that_is_no_patch_says_what_it_is(hub: stub.Hub, model: tiny.HfVlm) -> None:
    for file, said in {
        "adapter_config.json": "LoRA adapter of peft. .*errata patch import-peft",
        "config.json": "it is a model",
        "data.csv": "it is no patch",
    }.items():
        hub.repository("me/it", {file: b"{}"})
        with pytest.raises(BadPatch, match=said):
            errata.load_patch("me/it")
        with pytest.raises(BadPatch, match=f"other files \\({file}\\) and no patch"):
            made(model).push_to_hub("me/it")


def test_a_damaged_download_is_refused(hub: stub.Hub, model: tiny.HfVlm) -> None:
    made(model).push_to_hub(REPO)
    for name, said in {
        "patch.safetensors": "does not match the hash",
        "edits.jsonl": "does not match the hash",
        "patch.json": "is not valid JSON",
    }.items():
        hub.damaged = {name}
        hub.repos["me/again"] = hub.repos[REPO]
        line = refused(BadPatch, "me/again", backbone=model, cache_dir=f"cache-{name}")
        assert line.startswith("me/again, downloaded from the Hub: ") and said in line
        assert "Delete" in line and "from a copy" not in line
    hub.damaged = set()
    errata.load_patch(REPO, model)


def test_a_download_that_breaks_off_is_no_download(
    hub: stub.Hub, model: tiny.HfVlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between repeated requests
    made(model).push_to_hub(REPO)
    hub.cut = {"patch.safetensors"}
    assert REPO in refused(BadEndpoint)
    hub.cut = set()
    assert errata.load_patch(REPO, model).edits[0].target == "purple"


@pytest.mark.parametrize("name", ["../../x.png", "/etc/passwd", f"{'a' * 64}.png/../../x", "x.png"])
def test_no_picture_of_a_repository_leaves_its_folder(
    name: str, hub: stub.Hub, model: tiny.HfVlm
) -> None:
    made(model).push_to_hub(REPO)
    files = hub.repos[REPO].files()
    head = {**json.loads(files["patch.json"]), "images": [name]}
    hub.repository(REPO, {**files, "patch.json": json.dumps(head).encode()})
    assert "lists the picture" in refused(BadPatch)
    assert not [path for _, path in hub.requests if "/images/" in path or "passwd" in path]


def test_a_patch_of_another_model_or_shape_is_refused(hub: stub.Hub, model: tiny.HfVlm) -> None:
    made(model).push_to_hub(REPO)
    line = refused(FingerprintMismatch, backbone=tiny.shared("blip2"))
    assert line.startswith(f"{REPO} was made for")
    with pytest.raises(BadPatch, match="shape 'delta', not a Neurons"):
        Neurons.from_pretrained(REPO)


def test_a_folder_with_an_adapter_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "errata patch import-peft" in refused(BadPatch, tmp_path)


def test_a_newer_patch_is_not_downloaded_again(hub: stub.Hub, model: tiny.HfVlm) -> None:
    made(model).push_to_hub(REPO)
    files = hub.repos[REPO].files()
    head = {**json.loads(files["patch.json"]), "format": 2}
    hub.repository(REPO, {**files, "patch.json": json.dumps(head).encode()})
    line = refused(BadPatch)
    assert "has patch format 2" in line and line.endswith("Install the matching version.")


@pytest.mark.slow
def test_another_process_reads_the_environment(
    model: tiny.HfVlm, hub: stub.Hub, tmp_path: Path
) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN as users set them; progress bars stay out of a pipe."""
    made(model).push_to_hub(REPO, private=True)
    paths = [p for p in sys.path if p]
    told = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(paths)}  # fmt: skip
    command = [sys.executable, "-m", "errata", "patch", "show", REPO]
    ran = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "What colour is it? -> purple" in ran.stdout


def test_options_that_have_no_effect_are_refused(model: tiny.HfVlm, tmp_path: Path) -> None:
    patch = made(model)
    with pytest.raises(BadSpec, match="push_to_hub=True"):
        patch.save_pretrained(tmp_path / "p", private=True)
    with pytest.raises(BadSpec, match="unexpected keyword argument 'branch'"):
        patch.save_pretrained(tmp_path / "p", push_to_hub=True, branch="x")
    with pytest.raises(BadSpec, match="SPDX name"):
        patch.save_pretrained(tmp_path / "p", license="my own\nlicense")
    for name in ("a/b/c", "me/x y", "me/x@red", ""):
        with pytest.raises(BadSpec, match="names no repository"):
            patch.push_to_hub(name)
    assert not (tmp_path / "p").exists()


def test_the_hub_checks_the_metadata(model: tiny.HfVlm, hub: stub.Hub) -> None:
    with pytest.raises(BadSpec, match="Invalid metadata in README"):
        made(model).push_to_hub(REPO, license="nosuch")
    assert set(hub.repos[REPO].files()) == {".gitattributes"}


def test_what_is_a_path_and_what_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "me@home").mkdir()
    assert hub_name("me/ring") == HubName("me/ring")
    assert hub_name("me/ring@v1.0") == HubName("me/ring", "v1.0") == hub_name("me/ring", "v1.0")
    assert hub_name("hf://runs/ring") == HubName("runs/ring")
    for path in ("runs/ring", "ring", "./me/ring", "/me/ring", "a/b/c", "me@home", Path("me/ring")):
        assert hub_name(path) is None
        with pytest.raises(BadSpec, match="is a path, and revision='v1'"):
            hub_name(path, "v1")
    for wrong in ("hf://ring", "hf://me/../x", "hf://a/b/c"):
        with pytest.raises(BadSpec, match="names no repository"):
            hub_name(wrong)
    with pytest.raises(BadSpec, match="two revisions"):
        hub_name("me/ring@a", "b")
