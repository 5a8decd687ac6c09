"""Raising the --limit of a run: its finished units stay, the further cases come behind them.

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
    """Replaces plan.json and before.jsonl by `planned`, which continues them. Raises BadRun."""
    _check_continues(run, planned)
    (run / "scores.json").unlink(missing_ok=True)  # they are of fewer cases
    for name, data in planned.items():
        write_bytes(run / name, data)
    earlier = [*(manifest.get(EARLIER) or ()), manifest["limit"]]
    write_json(run / "manifest.json", {**manifest, "limit": limit, EARLIER: earlier})


def _check_continues(run: Path, planned: Mapping[str, bytes]) -> None:
    old, new = read_json(run / "plan.json"), json.loads(planned["plan.json"])
    before = read_bytes(run / "before.jsonl").splitlines() if old else []
    cases = {case["id"]: case for case in new["cases"]}
    same = (
        isinstance(old, dict)
        and all(cases.get(case.get("id")) == case for case in old.get("cases", ()))
        and all(old.get(key) == new[key] for key in ("benchmark", "protocol", "panel", "data"))
        and old.get("units") == new["units"][: len(old.get("units", ()))]
        and set(before) <= set(planned["before.jsonl"].splitlines())
    )
    if not same:
        raise BadRun(
            f"{run} cannot be continued with a higher --limit: its plan is not the beginning of "
            "the plan that the limit gives now. Choose another --out."
        )
