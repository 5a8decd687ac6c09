"""A latent patch as a file: it names the shared memory by its hash and holds no copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.core.errors import MissingState
from errata.core.patch import Header, Patch, parts_of
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.io import states
from errata.io.patch_folder import load, save
from errata.patches.delta import Delta
from errata.patches.latent import Latent, SharedMemory
from errata.patches.stack import Stack
from tests import tiny
from tests.latents import LAYERS, knowledge, latent


@pytest.fixture(scope="module")
def bb() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def known(bb: tiny.HfVlm) -> SharedMemory:
    return knowledge(bb)


@pytest.fixture(scope="module")
def asked(pictures: list[str]) -> list[Prompt]:
    texts = ["What is the colour of the thing?", "Which shape?", "Is it red or blue?", "New thing"]
    return [Prompt.of(f"{t} {i}", p) for t in texts for i, p in enumerate((*pictures, None, None))]


def logits(
    bb: tiny.HfVlm, prompts: list[Prompt], *patches: Patch, rows: list[int] | None = None
) -> Tensor:
    with torch.no_grad(), bb.applied(*patches):
        return bb.logits(
            bb.encode(prompts, rows=rows), rows=None if rows is None else torch.tensor(rows)
        )


def low(bb: tiny.HfVlm, seed: int = 0) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    part = {"A": torch.randn(2, 32, generator=rng), "B": torch.randn(32, 2, generator=rng) * 0.3}
    return Delta({"text.2.attn.q": part}).requires_grad_(False)


def state_of(known: SharedMemory) -> State:
    tensors: dict[str, Tensor] = {}
    for i, e in known.blocks.items():
        tensors |= {f"text.{i}/sem": e.sem, f"text.{i}/pos": e.pos, f"text.{i}/centre": e.centre}
        tensors |= {f"text.{i}/enc_sem/{k}": v for k, v in e.encoder.items()}
    return State("unike", {"made": "by a test"}, tensors)


@pytest.fixture
def stored(
    bb: tiny.HfVlm, known: SharedMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[State, Stack, Path]:
    """A state that is nowhere, a patch that names it, saved, and its folder."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    states._read.cache_clear()
    state = state_of(known)
    patch = Stack([latent(bb, SharedMemory.of(state), alpha="query"), low(bb)])
    header = Header(editor="unike", backbone=bb.name, fingerprint=bb.fingerprint())
    for part in (*parts_of(patch), patch):
        part.with_header(header, [Edit(Prompt.of("What colour?"), "red")])
    save(patch, tmp_path / "patch")
    return state, patch, tmp_path / "patch"


def same(bb: tiny.HfVlm, folder: Path, patch: Stack, asked: list[Prompt]) -> None:
    back = load(folder, bb)
    assert [type(p) for p in parts_of(back)] == [Latent, Delta] and back.edits == patch.edits
    assert torch.equal(logits(bb, asked[:4], back), logits(bb, asked[:4], patch))


def test_a_patch_finds_its_state_by_hash(
    bb: tiny.HfVlm, stored: tuple[State, Stack, Path], asked: list[Prompt], tmp_path: Path
) -> None:
    state, patch, folder = stored
    kept = states.store(state)
    same(bb, folder, patch, asked)
    kept.rename(tmp_path / "elsewhere")
    states.link(tmp_path / "elsewhere", state.digest())
    same(bb, folder, patch, asked)
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    states.link(tmp_path / "moved", state.digest())  # over a link that leads nowhere
    same(bb, folder, patch, asked)


def test_a_state_that_came_with_the_package_is_found(
    bb: tiny.HfVlm,
    stored: tuple[State, Stack, Path],
    asked: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, patch, folder = stored
    state.save(tmp_path / "assets" / "a-state")
    monkeypatch.setattr(states, "_shipped", lambda: [tmp_path / "assets" / "a-state"])
    same(bb, folder, patch, asked)


def test_a_missing_state_is_one_line(bb: tiny.HfVlm, stored: tuple[State, Stack, Path]) -> None:
    state, _, folder = stored
    with pytest.raises(MissingState, match=state.digest()[:16]) as missing:
        load(folder, bb)
    assert "\n" not in str(missing.value)


def test_saving_holds_no_copy_of_the_memory(stored: tuple[State, Stack, Path]) -> None:
    """Two own entries of (sem, pos) at three blocks of width 32, and the delta's 128 numbers."""
    _, _, folder = stored
    numbers = 2 * 2 * 3 * 32 + 128
    assert (folder / "patch.safetensors").stat().st_size < 4 * numbers + 2000


def test_a_state_with_changed_bytes_is_refused(
    bb: tiny.HfVlm, stored: tuple[State, Stack, Path]
) -> None:
    state, _, folder = stored
    file = states.store(state) / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(MissingState):
        load(folder, bb)


def test_a_link_to_a_folder_that_holds_another_state_by_now(
    bb: tiny.HfVlm, stored: tuple[State, Stack, Path], tmp_path: Path
) -> None:
    """Prepared to S; S prepared anew with other settings; the first one prepared again to S2."""
    state, _, folder = stored
    state.save(tmp_path / "S")
    states.link(tmp_path / "S", state.digest())
    other = State("unike", {"made": "with other settings"}, state.tensors)
    other.save(tmp_path / "S")
    states.link(tmp_path / "S", other.digest())
    state.save(tmp_path / "S2")
    states.link(tmp_path / "S2", state.digest())
    load(folder, bb)


def test_patches_of_one_state_hold_one_memory(
    bb: tiny.HfVlm, stored: tuple[State, Stack, Path]
) -> None:
    state, _, folder = stored
    states.store(state)
    one, two = (parts_of(load(folder, bb))[0] for _ in range(2))
    assert isinstance(one, Latent) and isinstance(two, Latent)
    assert one.knowledge is two.knowledge
    assert one.blocks[LAYERS[0]].sem.data_ptr() == two.blocks[LAYERS[0]].sem.data_ptr()
