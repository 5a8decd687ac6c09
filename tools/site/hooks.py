"""Hooks of MkDocs: generated pages, links that leave docs/, drawings, and a look at the result.

MkDocs loads this file by its path (mkdocs.yml) with the repository root on `sys.path`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.site import links, notebooks, reference, reports  # noqa: E402

#: pages that stand beside docs/, so that GitHub shows them
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DRAWING = re.compile(r"!\[([^\]]*)\]\(([\w./-]+\.svg)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the two parts of the navigation that are made from what there is."""
    parts = {"Reference": reference.navigation(), "Decisions": _decisions()}
    config["nav"] = _filled(config["nav"], parts)
    return config


def _filled(nav: Any, parts: dict[str, Any]) -> Any:
    if isinstance(nav, list):
        return [_filled(entry, parts) for entry in nav]
    if isinstance(nav, dict):
        return {k: parts[k] if v == [] else _filled(v, parts) for k, v in nav.items()}
    return nav.replace(".ipynb", ".md") if isinstance(nav, str) else nav


def _decisions() -> list[str]:
    return [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is generated: reference, tables of data, notebooks as pages, files beside docs/."""
    pages = reference.pages() | {"results/data/index.md": reference.data_page()}
    pages |= {f"project/{name}": (ROOT / name).read_text(encoding="utf-8") for name in PROJECT}
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            pages[page] = notebooks.page(Path(str(file.abs_src_path)))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for name, path in reports.made(Path(config["site_dir"]).with_name("reports")).items():
        files.append(File.generated(config, f"reports/{name}.html", abs_src_path=str(path)))
    for path in sorted(links.outside(ROOT)):
        uri = links.copied(path.relative_to(ROOT))
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ go to the copies; a drawing stands in its page."""
    uri: str = page.file.src_uri
    text = links.rewritten(markdown, uri, ROOT)
    return DRAWING.sub(lambda m: _drawing(m[1], uri, m[2]), text)


def _drawing(alt: str, uri: str, target: str) -> str:
    """An SVG file as part of the page: it takes the page's colours, light or dark."""
    path = ROOT / "docs" / os.path.normpath(Path(uri).parent / target)
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.S)
    svg = svg.replace("<svg ", f'<svg class="drawing" role="img" aria-label="{alt}" ', 1)
    return re.sub(r"\n\s*", "", svg)


LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon)\b[^>]*//[^"'\s>]+"""
)


def on_post_build(config: MkDocsConfig) -> None:
    """A page that would load anything from another host is an error: it must be read offline."""
    for path in Path(config["site_dir"]).rglob("*.html"):
        if found := LOADS.search(path.read_text(encoding="utf-8")):
            raise Abort(f"{path.name} would load something from a network: {found[0]}")
