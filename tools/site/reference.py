"""One page for each plug-in, from its file, its settings, and what was measured; and the commands.

What a person would want to know first is written by hand in words/KIND.md, a section for each name;
a plug-in without one has its own header alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from tools.docs import ROOT
from tools.site import commands, measured
from tools.site.formatted import code, from_docstring, table

WORDS = Path(__file__).with_name("words")
#: kind -> the title of its part
TITLES = {
    "editors": "Editors",
    "scopes": "Scopes",
    "backbones": "Backbones",
    "benchmarks": "Benchmarks",
    "protocols": "Protocols",
    "metrics": "Metrics",
    "judges": "Judges",
    "analyses": "Analyses",
}
#: tables that are about a plug-in as a whole, by the name of their CSV file
WHOLE = {
    ("benchmarks", "microworld"): ("vqa-one_step",),
    ("benchmarks", "pocket"): ("real-pocket", "real-pocket-begins"),
    ("benchmarks", "places"): ("real-places", "real-places-begins"),
    ("benchmarks", "counterfact"): ("real-one_step",),
    ("benchmarks", "unike_umm"): ("umm", "umm-controls"),
    ("metrics", "exact"): ("vqa-one_step",),
    ("metrics", "token"): ("vqa-one_step-token",),
    ("metrics", "probability"): ("real-one_step",),
    ("metrics", "begins"): ("real-one_step-begins",),
    ("metrics", "rest"): ("umm-other-attributes",),
    ("metrics", "judge"): ("umm-controls",),
    ("protocols", "one_step"): ("vqa-one_step",),
    ("protocols", "sequential"): ("vqa-sequential10", "vqa-sequential20"),
    ("protocols", "cross_task"): ("cross_task",),
    ("protocols", "memory"): ("scope-testimony",),
    ("protocols", "direct"): ("umm",),
    ("protocols", "reasoning"): ("umm-rationales",),
    ("analyses", "drift"): ("drift-signal", "drift-pictures"),
    ("analyses", "spaces"): ("unike-spaces",),
    ("analyses", "tracing"): ("real-tracing",),
    ("scopes", "dualedit"): ("gate-leak",),
    ("scopes", "subject"): ("umm-scoped",),
    ("scopes", "trained"): ("scope-leak",),
}


def navigation() -> list[Any]:
    """The entries of the part `Reference`."""
    from errata.core import registry

    parts: list[Any] = ["reference/index.md", {"Commands": "reference/commands.md"}]
    for kind, title in TITLES.items():
        names = [{n: f"reference/{kind}/{n}.md"} for n in (*registry.names(kind), *_models(kind))]
        parts.append({title: [f"reference/{kind}/index.md", *names]})
    return parts


def paths() -> set[str]:
    """The paths of all its pages, without making them."""

    def inside(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from inside(one)

    return set(inside(navigation()))


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of the whole part `Reference`."""
    from errata.core import registry

    made = {"reference/index.md": _overview(), "reference/commands.md": commands.page()}
    for kind in TITLES:
        made[f"reference/{kind}/index.md"] = _index(kind)
        for name in registry.names(kind):
            made[f"reference/{kind}/{name}.md"] = _page(kind, name)
        for name in _models(kind):
            made[f"reference/{kind}/{name}.md"] = _model(name)
    return made


def data_page() -> str:
    """The CSV files of docs/results/data."""
    files = sorted((ROOT / "docs" / "results" / "data").glob("*.csv"))
    heads = [path.read_text(encoding="utf-8").splitlines() for path in files]
    rows = [[f"[{p.name}]({p.name})", len(h) - 1, code(h[0].split(",")[0])]
            for p, h in zip(files, heads, strict=True)]  # fmt: skip
    return "\n\n".join([
        "# Data of the results",
        "Every table of these pages as a CSV file. A number `x` with a 95 % interval takes three "
        "columns: `x`, `x_low`, `x_high`. Shares are in per cent.",
        table(["file", "rows", "first column"], rows),
    ])  # fmt: skip


@cache
def words(kind: str) -> dict[str, str]:
    """Name -> what was written by hand about it. The name `index` is the kind itself."""
    path = WORDS / f"{kind}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = re.split(r"^## (\S+)\n", text, flags=re.M)
    return {n: body.strip() for n, body in zip(parts[1::2], parts[2::2], strict=True)}


def _models(kind: str) -> list[str]:
    from errata.cli.shared.options import bundled_models

    return list(bundled_models()) if kind == "backbones" else []


def _overview() -> str:
    from errata.core import registry

    rows = [
        [f"[{title}]({kind}/index.md)", len(registry.names(kind)), _first(words(kind)["index"])]
        for kind, title in TITLES.items()
    ]
    text = (
        "Everything that has a name on the command line. Each page is made from the plug-in's own "
        "file, its settings and the tables of the [results](../results/index.md), whenever the "
        "site is built. `errata show KIND NAME` prints the same without the figures. "
        "[All commands](commands.md) have a page of their own."
    )
    return "\n\n".join(["# Reference", text, table(["kind", "how many", "what it is"], rows)])


def _first(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " ")


def _index(kind: str) -> str:
    from errata.core import registry

    rows = [[f"[{code(n)}]({n}.md)", registry.summary(kind, n)] for n in registry.names(kind)]
    rows += [[f"[{code(n)}]({n}.md)", "a bundled model"] for n in _models(kind)]
    return "\n\n".join([f"# {TITLES[kind]}", words(kind)["index"], table(["name", ""], rows)])


def _page(kind: str, name: str) -> str:
    from errata.cli.plugins import _facts
    from errata.core import registry

    cls = registry.load(kind, name)
    facts: dict[str, Any] = _facts(kind, cls)
    parts = [f"# {code(name)}", f"*{registry.summary(kind, name)}.*", words(kind).get(name, "")]
    parts += [_facts_list(facts)]
    parts += ["## How it is used", _example(kind, name, cls)]
    if "settings" in facts:
        parts += ["## Settings", _settings(cls.Config, facts["meanings"])]
    if facts.get("presets"):
        parts += ["## Presets", _presets(name, facts["presets"])]
    parts += _measured(kind, name)
    if kind == "editors":
        parts += ["## Classes of models", *_classes(name)]
    parts += ["## From its file", *_header(cls)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _measured(kind: str, name: str) -> Iterator[str]:
    """Nothing for what is not measured by itself, such as a protocol."""
    found = measured.section(name, "../../", WHOLE.get((kind, name), ()))
    if found or kind in ("editors", "scopes"):
        yield "## What was measured"
        yield found or "No table of the [results](../../results/index.md) has it yet."


def _header(cls: type) -> Iterator[str]:
    """The docstrings of the module, without the line that is shown above, and of the class."""
    import inspect
    import sys

    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    yield from_docstring(module.partition("\n")[2].strip())
    yield from_docstring(inspect.cleandoc(vars(cls).get("__doc__") or ""))
    file = inspect.getsourcefile(cls) or ""
    yield f"The file: {code(Path(file).relative_to(ROOT / 'src').as_posix())}"


def _facts_list(facts: Mapping[str, Any]) -> str:
    """What is known of it besides its settings, one line each."""
    lines = []
    for key, value in facts.items():
        if key in ("name", "kind", "settings", "meanings", "presets"):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        shown = {"True": "yes", "False": "no"}.get(shown, shown)
        if shown:
            lines.append(f"- **{key}:** {shown}")
    return "\n".join(lines)


def _example(kind: str, name: str, cls: Any) -> str:
    """Commands that use it, as they would be typed."""
    data = "microworld:vqa" if "image" in getattr(cls, "modalities", "image") else "places"
    bench = "errata bench MODEL --benchmark"
    from errata.core import registry

    shown = code(f"errata show {registry.singular(kind)} {name}")
    how = f"{shown} prints settings and header in a terminal."
    lines: list[str] = []
    if kind == "editors":
        if cls.needs_state:
            train = "--benchmark BENCHMARK@train"
            lines.append(f"errata prepare MODEL --editor {name} {train} --out state")
        lines.append(
            f"errata edit MODEL --editor {name} {'--state state ' if cls.needs_state else ''}"
            '--prompt "QUESTION" --target "ANSWER" --out patch'
        )
        lines.append(f"{bench} {data} --editor {name} --protocol one_step --limit 50 --out run")
    elif kind == "scopes":
        lines.append(f"{bench} {data} --editor ft_l --scope {name} --protocol one_step --out run")
    elif kind == "benchmarks":
        files = {"facts": "facts:FILE.jsonl", "counterfact": "counterfact:FILE.json",
                 "mquake": "mquake:FILE.json"}  # fmt: skip
        spec = files.get(name, f"{name}:{cls.tasks[0]}" if len(cls.tasks) > 1 else name)
        lines.append(f"{bench} {spec} --editor EDITOR --protocol one_step --limit 50 --out run")
        lines.append(f"errata data audit {spec}")
    elif kind == "protocols":
        data = "unike_umm:microworld" if name in ("direct", "reasoning") else data
        lines.append(f"{bench} {data} --editor EDITOR --protocol {cls('').spec} --out run")
    elif kind == "metrics":
        lines.append(f"errata score RUN --metric {name}")
    elif kind == "judges":
        lines.append(f"errata judge RUN --judge {name}")
    elif kind == "analyses":
        lines.append(f"errata analyze {name} MODEL --out figures")
    else:
        lines += ["errata doctor MODEL", 'errata ask MODEL "QUESTION"']
    return "```text\n" + "\n".join(lines) + "\n```\n\n" + how


def _settings(config: type, meanings: Mapping[str, str]) -> str:
    rows = []
    for f in fields(config):
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        default = f.default
        if default is MISSING and f.default_factory is not MISSING:
            default = f.default_factory()
        shown = "required" if default is MISSING else code(repr(default))
        rows.append([code(f.name), code(kind), shown, meanings.get(f.name, "")])
    if not rows:
        return "It has none."
    return table(["setting", "type", "default", "meaning"], rows)


def _presets(name: str, presets: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [code(f"{name}:{preset}"), ", ".join(code(f"{k}={v}") for k, v in sorted(values.items()))]
        for preset, values in presets.items()
    ]
    text = f"A preset is a set of values, chosen with `--editor {name}:PRESET`."
    return text + "\n\n" + table(["preset", "values"], rows)


def _classes(editor: str) -> Iterator[str]:
    """On which of the tried classes of transformers it works."""
    from errata.cli.shared.classes import stored

    rows = [r for r in stored()["classes"] if editor in r["editors"]]
    if not rows:
        yield "It was not tried class by class; it follows what its parts can do."
        return
    refused: dict[str, list[str]] = {}
    for r in rows:
        if why := r["editors"][editor]:
            refused.setdefault(re.sub(r"^\S+: ", "", why), []).append(r["class"])
    good = len(rows) - sum(map(len, refused.values()))
    yield (
        f"Acts, is saved, loaded and undone on {good} of {len(rows)} classes of transformers that "
        "were tried ([table](../../classes.md))."
    )
    if refused:
        many = [", ".join(map(code, names)) for names in refused.values()]
        said = [re.sub(r"\s+", " ", why) for why in refused]
        yield table(["refused on", "why"], [list(r) for r in zip(many, said, strict=True)])


def _model(name: str) -> str:
    """A bundled model: its card."""
    from errata.cli.plugins import _bundled

    facts, card = _bundled(name)
    body = re.sub(r"^#", "##", re.sub(r"^# .*\n", "", card), flags=re.M)
    said = words("backbones").get(name, "")
    return "\n\n".join([f"# {code(name)}", said, _facts_list(facts), "## Its card", body])
