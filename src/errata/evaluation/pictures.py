"""Saves the pictures of a run, and caches those of the unedited model between runs.

The file name of a picture follows from its question and seed. While a unit runs, each batch that is
drawn leaves the hashes of its pictures under a key of everything that they depend on: model, live
patch, prompts, seeds. A unit that was killed and runs again edits again, but draws no batch twice
whose pictures are there. Pictures of the unedited model are also kept in ERRATA_HOME, by content
and with their answers, so that every editor on one plan shares them.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image as Pillow

from errata.core import files
from errata.core.errors import UserError
from errata.core.files import read_bytes
from errata.core.hooks.hook import Hook
from errata.core.measure.protocol import Ask
from errata.core.patch import Patch
from errata.core.types import Answer, digest, from_json, to_json
from errata.evaluation import cache

#: Pictures drawn in one batch; a run is reproducible only with the same number.
PICTURES = 64
SEEDS = 4

#: [prompt][seed]
Pictures = Sequence[Sequence[Pillow.Image]]


class PictureStore:
    """The pictures of one run: `seeds` per prompt, saved as PNG below `run`/images."""

    def __init__(self, run: Path, seeds: Sequence[int]) -> None:
        self.run, self.seeds = run, tuple(seeds)
        self.batch = max(1, PICTURES // len(self.seeds))

    def begun(self, key: str, asks: Sequence[Ask]) -> list[tuple[str, ...]] | None:
        """The paths of a batch that a killed run has drawn; None if a picture is not the same."""
        try:
            hashes = files.read_json(self._begun / f"{key}.json")
            there = {path: hashlib.sha256(read_bytes(self.run / path)).hexdigest()
                     for ask in asks for path in self.paths(ask)}  # fmt: skip
        except UserError:
            return None
        return [self.paths(ask) for ask in asks] if there == hashes else None

    def note(self, key: str, paths: Sequence[str]) -> None:
        """Notes that a batch is drawn."""
        hashes = {p: hashlib.sha256(read_bytes(self.run / p)).hexdigest() for p in paths}
        files.write_bytes(self._begun / f"{key}.json", files.dumps(hashes).encode(), sync=False)

    def finished(self) -> None:
        """Forgets the batches of a unit, whose answers are written now."""
        shutil.rmtree(self._begun, ignore_errors=True)

    @property
    def _begun(self) -> Path:
        return self.run / "images" / ".begun"

    def keep(self, ask: Ask, drawn: Sequence[Pillow.Image]) -> tuple[str, ...]:
        """Saves the pictures of one question and returns their paths in the run folder."""
        paths = self.paths(ask)
        for path, picture in zip(paths, drawn, strict=True):
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
            self.put(path, buffer.getvalue())
        return paths

    def put(self, path: str, data: bytes) -> None:
        files.write_bytes(self.run / path, data, sync=False)

    def paths(self, ask: Ask) -> tuple[str, ...]:
        """images/<case>/<probe>[@<tag>]-<seed>.png"""
        name = _safe(ask.probe.id) + (f"@{ask.tag}" if ask.tag else "")
        return tuple(f"images/{_safe(ask.case)}/{name}-{seed}.png" for seed in self.seeds)

    def recall(self, key: str, asks: Sequence[Ask], step: int) -> list[Answer] | None:
        """The cached answers to `asks`, pictures written to the run; None if one is missing."""
        stored = cache.load(key)
        if stored is None:
            return None
        try:
            answers = from_json(tuple[Answer, ...], stored)
        except ValueError:  # a damaged cache is not used
            return None
        if [(a.case, a.probe, a.tag) for a in answers] != [
            (a.case, a.probe.id, a.tag) for a in asks
        ]:
            return None
        out = []
        for ask, answer in zip(asks, answers, strict=True):
            paths = self.paths(ask) if answer.images else ()
            for path, name in zip(paths, answer.images, strict=True):
                data = cache.load_bytes(name)
                if data is None:
                    return None
                self.put(path, data)
            out.append(replace(answer, step=step, images=paths))
        return out

    def remember(self, key: str, answers: Sequence[Answer]) -> None:
        """Caches answers and pictures for later runs; without effect if the cache is read-only."""
        kept = []
        try:
            for answer in answers:
                data = [read_bytes(self.run / path) for path in answer.images]
                kept.append(replace(answer, images=tuple(map(cache.store_bytes, data))))
        except UserError:
            return
        cache.store(key, [to_json(a) for a in kept])


def live_digest(hooks: Sequence[Hook]) -> str:
    """sha256 of the live patches: of their settings and tensors."""
    found = hashlib.sha256()

    def add(hook: Hook) -> None:
        found.update(f"{type(hook).__name__}/".encode())
        if members := hook.members():
            for member in members:
                add(member)
        elif isinstance(hook, Patch):
            settings, tensors = hook.pack()
            found.update(files.dumps(settings).encode())
            for name, tensor in sorted(tensors.items()):
                found.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                found.update(plain.view(torch.uint8).numpy().tobytes())
        found.update(b".")

    for hook in hooks:
        add(hook)
    return found.hexdigest()


def _safe(name: str) -> str:
    """A readable file name; different names never give the same one."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "-", name.replace("+", " ").replace("/", "+"))
    same = plain.replace("+", "/") == name and not plain.startswith(".") and len(plain) <= 80
    return plain if same else f"{plain[:80].lstrip('.')}-{digest(name)[:8]}"
