"""Continuing a run: it must be the same, and with a higher --limit it gets further cases.

Another processor rounds in other ways, so log-probabilities may differ a little; what was said may
not. With a higher --limit the finished units stay, and the further cases come behind them.
manifest.json has the present `limit`, and under `earlier_limits` the lower ones that it had before.
The files are replaced one by one, the manifest last: a run that is killed in between is continued
by the same command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import read_bytes, read_json, write_bytes, write_json

EARLIER = "earlier_limits"
#: largest difference of a log-probability between two machines
ROUNDING = 1e-3


def is_raised(was: object, limit: object) -> bool:
    """Whether `limit` is higher than the limit of a run; None stands for all cases."""
    return isinstance(was, int) and (limit is None or (isinstance(limit, int) and limit > was))


def earlier_limits(run: Path, limit: int | None) -> tuple[int, ...]:
    """The lower limits that the run in `run` had, if it is continued with `limit`."""
    if not (run / "manifest.json").is_file():
        return ()
    manifest = read_json(run / "manifest.json")
    if not isinstance(manifest, dict):
        return ()
    earlier = tuple(manifest.get(EARLIER) or ())
    was = manifest.get("limit")
    return (*earlier, was) if isinstance(was, int) and is_raised(was, limit) else earlier


def raise_limit(
    run: Path, manifest: Mapping[str, Any], planned: Mapping[str, bytes], limit: int | None
) -> None:
    """Replaces plan.json and before.jsonl by `planned`, which continues them. Raises BadRun.

    Answers of before stay as they were recorded.
    """
    _check_continues(run, planned)
    recorded = _answers(read_bytes(run / "before.jsonl")) if read_json(run / "plan.json") else {}
    now = _answers(planned["before.jsonl"])
    lines = [recorded.get(key, line) for key, line in now.items()]
    planned = {**planned, "before.jsonl": b"".join(line + b"\n" for line in lines)}
    (run / "scores.json").unlink(missing_ok=True)  # they are of fewer cases
    for name, data in planned.items():
        write_bytes(run / name, data)
    earlier = [*(manifest.get(EARLIER) or ()), manifest["limit"]]
    write_json(run / "manifest.json", {**manifest, "limit": limit, EARLIER: earlier})


def _check_continues(run: Path, planned: Mapping[str, bytes]) -> None:
    old, new = read_json(run / "plan.json"), json.loads(planned["plan.json"])
    before = read_bytes(run / "before.jsonl") if old else b""
    cases = {case["id"]: case for case in new["cases"]}
    same = (
        isinstance(old, dict)
        and all(cases.get(case.get("id")) == case for case in old.get("cases", ()))
        and all(old.get(key) == new[key] for key in ("benchmark", "protocol", "panel", "data"))
        and old.get("units") == new["units"][: len(old.get("units", ()))]
        and same_answers(before, planned["before.jsonl"], beginning=True)
    )
    if not same:
        raise BadRun(
            f"{run} cannot be continued with a higher --limit: its plan is not the beginning of "
            "the plan that the limit gives now. Choose another --out."
        )


def same_answers(recorded: bytes, now: bytes, *, beginning: bool = False) -> bool:
    """Whether two files of answers hold the same, apart from the rounding of log-probabilities.

    beginning: `now` may hold further answers.
    """
    if recorded == now:
        return True
    try:
        old, new = _answers(recorded), _answers(now)
    except (ValueError, KeyError, TypeError):
        return False
    if not (set(old) <= set(new) if beginning else list(old) == list(new)):
        return False
    return all(
        line == new[key] or _same(json.loads(line), json.loads(new[key]))
        for key, line in old.items()
    )


def same_plan(recorded: bytes, now: bytes) -> bool:
    """Whether two plans are the same, apart from what is said about cases that neither edits.

    How many of those were looked at depends on how many cases are asked together.
    """
    try:
        old, new = json.loads(recorded), json.loads(now)
        planned = {case["id"] for case in new["cases"]}
        for plan in (old, new):
            plan["dropped"] = [s for s in plan["dropped"] if s["id"].partition("/")[0] in planned]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(old == new)


def _answers(data: bytes) -> dict[tuple[Any, ...], bytes]:
    """The lines of a file of answers, by what tells them apart."""
    rows = ((json.loads(line), line) for line in data.splitlines())
    return {tuple(row[k] for k in ("case", "probe", "step", "tag")): line for row, line in rows}


def _same(old: Any, new: Any, name: str = "") -> bool:
    if name == "top":  # an order of tokens that may be nearly equal
        return (old is None) == (new is None)
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[k], new[k], k) for k in old)
    if name == "logprobs" and isinstance(old, list) and isinstance(new, list):
        pairs = zip(old, new, strict=False)
        return len(old) == len(new) and all(abs(a - b) <= ROUNDING for a, b in pairs)
    return bool(old == new)
