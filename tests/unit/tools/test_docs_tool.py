"""tools/docs.py: a row of the table of classes with what was found about one more editor."""

from __future__ import annotations

import pytest

from tools import docs

ROW = {"name": "a", "status": "works", "reason": "", "editors": {"ft_l": "", "say": "old"}}


@pytest.mark.parametrize(("why", "status"), [("", "works"), ("no head", "partly")])
def test_one_editor_is_tried_again_and_the_others_stay(why, status):
    new = {"name": "a", "status": "works", "reason": "", "editors": {"say": why}}
    found = docs._with_editors(ROW, new)
    assert found == {**ROW, "status": status, "editors": {"ft_l": "", "say": why}}


def test_a_class_that_is_refused_stays_and_one_that_fails_is_an_error():
    refused = {"name": "b", "status": "refused", "reason": "why", "editors": {}}
    assert docs._with_editors(refused, {**refused, "reason": "other words"}) == refused
    with pytest.raises(AssertionError):
        docs._with_editors(ROW, {**ROW, "status": "fails"})
