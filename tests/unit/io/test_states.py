"""States by the hash of their content, equal answers, and the heads of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.core.errors import BadBackbone, MissingState, UserError
from errata.core.state import State
from errata.core.text import normalise
from errata.io import states
from tests import tiny


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    states._read.cache_clear()
    return tmp_path / "home"


def state(x: float = 1.0) -> State:
    tensors = {"a": torch.full((3,), x), "b": torch.tensor(2.0).bfloat16()}
    return State("e", {"n": 1}, tensors, fingerprint="f", settings={"s": 1})


def test_a_kept_state_is_found_whole(home: Path) -> None:
    one = state()
    folder = states.store(one)
    assert folder == home / "states" / one.digest()[:16] == states.store(one)
    back = states.find(one.digest())
    assert (back.editor, back.fingerprint, dict(back.settings)) == ("e", "f", {"s": 1})
    assert back.digest() == one.digest()
    assert torch.equal(back.tensors["a"], one.tensors["a"])


def test_the_digest_is_of_names_numbers_and_facts() -> None:
    digests = {
        state().digest(),
        state(1.5).digest(),
        State("e", {"n": 2}, state().tensors).digest(),
    }
    renamed = {"c" if k == "a" else k: v for k, v in state().tensors.items()}
    assert len(digests | {State("e", {"n": 1}, renamed).digest()}) == 4
    assert state().digest() == state().digest()


def test_a_folder_of_the_user_s_is_linked(tmp_path: Path) -> None:
    one = state()
    one.save(tmp_path / "mine")
    states.link(tmp_path / "mine", one.digest())
    states.link(tmp_path / "mine", one.digest())
    assert states.folder_of(one.digest()).is_symlink()
    assert states.find(one.digest()).digest() == one.digest()
    kept = states.store(state(2.0))
    states.link(kept, state(2.0).digest())
    assert not kept.is_symlink()


def test_a_home_that_cannot_be_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "file"))
    one = state()
    one.save(tmp_path / "mine")
    states.link(tmp_path / "mine", one.digest())


def test_only_states_for_the_model_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state().save(tmp_path / "one")
    State("other", {}, state().tensors, fingerprint="f").save(tmp_path / "two")
    folders = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setattr(states, "_shipped", lambda: folders)
    assert [s.editor for s in states.shipped("e", "f".__eq__)] == ["e"]
    assert list(states.shipped("e", "another model".__eq__)) == []


def test_a_cut_state_is_the_user_s_to_mend(tmp_path: Path) -> None:
    state().save(tmp_path / "s")
    file = tmp_path / "s" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError):
        State.load(tmp_path / "s")


def test_a_head_of_something_else_is_the_user_s_to_mend(tmp_path: Path) -> None:
    state().save(tmp_path / "s")
    (tmp_path / "s" / "state.json").write_text("{}")
    with pytest.raises(UserError):
        State.load(tmp_path / "s")


def test_an_empty_folder_is_a_missing_state(tmp_path: Path) -> None:
    with pytest.raises(MissingState, match="holds no editor state"):
        State.load(tmp_path)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Red.", " red ", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("STRASSE", "stra\u00dfe", True),
        ("red..", "red.", False),
        ("red .", "red", True),
        ("two  words", "two words", False),
        ("", ".", True),
    ],
)
def test_when_answers_are_the_same(a: str, b: str, same: bool) -> None:
    assert (normalise(a) == normalise(b)) == same


@pytest.mark.parametrize("family", sorted({**tiny.FAMILIES, **tiny.WINDOWED}))
def test_heads_and_norms_of_every_family(family: str) -> None:
    """The sizes are those of the configurations in tests/tiny.py: width 32, heads of 8."""
    bb = tiny.shared(family)
    for i in range(bb.depth):
        heads = bb.heads(i)
        assert (heads.queries, heads.size) == (4, 8)
        assert heads.keys == (4 if family == "blip2" else 2)
        assert heads.scale == pytest.approx(8**-0.5)
        at = f"text.{i}.attn"
        assert bb.weight(f"{at}.o")[0] == heads.queries * heads.size
        assert bb.hooks.call(f"{at}.norm", torch.ones(1, 2, 32)).shape == (1, 2, 32)
        normed = {p for p in ("q_norm", "k_norm") if f"{at}.{p}" in bb.hooks.sites}
        assert normed == ({"q_norm", "k_norm"} if family in ("qwen3", "gemma3") else set())
        for part in normed:
            assert bb.hooks.call(f"{at}.{part}", torch.ones(1, 2, 4, 8)).shape == (1, 2, 4, 8)


def test_a_block_without_a_projection_is_named() -> None:
    bb = tiny.llava(layers=2)
    del bb.hooks.sites["text.1.attn.k"]
    assert bb.heads(0).queries == 4
    with pytest.raises(BadBackbone, match="block 1 has no separate attention 'k'"):
        bb.heads(1)
