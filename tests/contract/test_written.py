"""A value that was searched is written, or the editor says that it is not: over all classes."""

from __future__ import annotations

import pytest

from errata.core.errors import UserError
from errata.testing import zoo
from tests.locate import EDITS, LITTLE, WHOLE, edit_and_listen, made, share_missing, statistics

LOADED = [name for name, model in zoo.ZOO.items() if not model.refused]


@pytest.mark.parametrize("name", LOADED)
def test_every_class_is_written_to_or_it_is_said(name: str) -> None:
    bb = zoo.loaded(name)
    try:
        state = statistics(bb)
    except UserError as e:  # no down projection that can be written: every editor refuses it
        assert "mlp.down" in str(e)
        return
    for editor in WHOLE:
        for settings in ({}, LITTLE[editor]):
            one = made(editor, **settings)
            try:
                result, said = edit_and_listen(one, bb, EDITS[:1], state)
            except UserError as e:
                assert "no site" in str(e), (editor, str(e))
                continue
            left = result.log.notes["edits"][0]["left"]
            if not settings:
                missing = share_missing(bb, one, EDITS[0], result)
                assert missing == pytest.approx(left, abs=0.05), editor
            assert ("searched for 'ring'" in said) == (left > 0.5), (editor, left)
            assert left > 0.5 if settings else left < 0.5, (editor, left)
