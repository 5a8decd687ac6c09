"""An executed notebook as a page in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def page(path: Path) -> str:
    """Text cells as they are, code cells with what they printed or drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    title, *others = parts
    return "\n\n".join([title, f"[This page as a notebook]({path.name})", *others]) + "\n"


def _output(output: dict[str, Any]) -> str:
    """What a cell printed, as a block; a picture as part of the page."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        content = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="what the cell above draws" src="data:image/png;base64,{content}">'
    text = "".join(data.get("text/plain", [])).rstrip()
    return f"```text\n{text}\n```" if text else ""
