"""How much of the values that were searched is written, and how large the change has become.

A search that reached its target says nothing about the solve behind it: a large second moment, an
empty null space or a limit on the change may leave most of a value unwritten. `left` of an edit is
|z - y| / |z - y0|, with the value z that was searched, and the output at its site in the bare
prompt, y with all changes of the group and y0 before the search: 0 = written, 1 = nothing was,
above 1 = farther away than before.

Shapes: E edits, h outputs of a site.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from errata.algorithms.locate_then_edit.layer_stats import FFN
from errata.core.errors import Notice
from errata.core.types import Edit

#: `left` above it is said
MOST_LEFT = 0.5
#: |dW| / |W| above it is said
MOST_CHANGE = 1.0

Logs = Sequence[dict[str, Any]]


def note_left(logs: Logs, value_Eh: Tensor, start_Eh: Tensor, now_Eh: Tensor, part: str) -> None:
    """Notes the share of each edit's value that is not written, of a part of a block.

    Where layers have values of their own, one above the other, the shares are multiplied: each
    writes a part of what those below have left.
    """
    name = "left" if part == FFN else f"left.{part}"
    left, whole = (value_Eh - now_Eh).norm(dim=1), (value_Eh - start_Eh).norm(dim=1)
    same = whole <= 1e-6 * value_Eh.norm(dim=1)  # the search has changed nothing
    for line, share, unmoved in zip(logs, (left / whole).tolist(), same.tolist(), strict=True):
        if unmoved:  # the answer was there, or the site has no effect on it
            share = 0.0 if line.get("stopped", True) else 1.0
        line[name] = round(line.get(name, 1.0) * share, 4)


def share_left(line: Mapping[str, Any]) -> float:
    """The largest share of a value of an edit that is not written."""
    shares = [v for k, v in line.items() if k == "left" or k.startswith("left.")]
    # NaN is not written either
    return max((float("inf") if v != v else float(v) for v in shares), default=0.0)


def unwritten(edits: Sequence[Edit], logs: Logs, remedy: str) -> str:
    """A line about the edits whose value is mostly not written; "" if there are none."""
    shares = [share_left(line) for line in logs]
    short = [i for i, share in enumerate(shares) if share > MOST_LEFT]
    if not short:
        return ""
    worst = max(short, key=shares.__getitem__)
    share, name = shares[worst], edits[worst].id or edits[worst].prompt.text[:60]
    if share > 1:
        line = (
            f"the model is {share:.3g} times as far from the value that was searched for '{name}' "
            "as before the edit"
        )
    else:
        line = f"{share:.0%} of the value that was searched for '{name}' is not written"
    if len(short) > 1:
        line += f", and more than half of it for {len(short)} of {len(edits)} edits"
    return f"{line}. {remedy}"


def oversized(changes: Mapping[str, float], remedy: str) -> str:
    """A line about the site with the largest |dW| / |W|; "" if no weight is outweighed."""
    site = max(changes, key=changes.__getitem__, default="")
    if not site or changes[site] <= MOST_CHANGE:
        return ""
    return (
        f"the change of {site} is {changes[site]:.3g} times as large as its weight, so that other "
        f"answers may break. {remedy}"
    )


def notice(editor: str, line: str) -> str:
    """Warns of it; returns the line."""
    warnings.warn(f"editor '{editor}': {line}", Notice, stacklevel=4)
    return line
