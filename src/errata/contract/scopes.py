"""What every scope must hold: it is data, and tells edits and questions apart by keys alone.

How a scope decides in a model is tested for all of them in tests/contract/test_scopes.py: some need
a state, which no check can make for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch

from errata.core.config import meanings
from errata.core.errors import BadSpec
from errata.core.model.scope import BlockScope, PromptScope, Scope, unpack_scope


def checks(cls: type[Scope]) -> list[tuple[str, Callable[[], None]]]:
    from errata.contract._names import named

    return [(named(f), partial(f, cls)) for n, f in globals().items() if n.startswith("holds_")]


def holds_kind(cls: type[Scope]) -> None:
    """It reads a block of the model, or the prompt."""
    assert issubclass(cls, (BlockScope, PromptScope))


def holds_settings(cls: type[Scope]) -> None:
    """An unknown setting is refused, and every setting is described."""
    try:
        cls(no_such_setting=1)
    except BadSpec:
        pass
    else:
        raise AssertionError("a setting that does not exist was accepted")
    lacking = {f.name for f in fields(cls.Config)} - meanings(cls.Config).keys()
    assert not lacking, f"the docstring of Config does not say what {sorted(lacking)} means"


def holds_packed(cls: type[Scope]) -> None:
    """What is saved makes the same scope again."""
    scope = cls()

    def find(digest: str) -> None:
        raise AssertionError(f"a scope without a state names the state {digest}")

    assert unpack_scope(scope.pack(), find).form == scope.form  # type: ignore[arg-type]


def holds_join(cls: type[Scope]) -> None:
    """Keys of two memories become those of one, in order, and an equal key replaces the old one."""
    scope, keys = cls(), torch.arange(1, 7).reshape(3, 2)
    if issubclass(cls, BlockScope):
        keys = torch.nn.functional.normalize(keys.float(), dim=-1)
    assert torch.equal(scope.join([keys[:1], keys[1:]]), keys)
    assert scope.replaced(keys, keys[1:2]).tolist() == [False, True, False]
