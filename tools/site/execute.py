"""Runs the tutorials again and stores what they print: `python -m tools.site.execute`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tools.docs import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"


def executed(path: Path) -> Any:
    """The notebook with new outputs. Raises CellExecutionError where a cell fails."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="k") as sockets:  # a short path: a socket's is limited
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/s")
        client = NotebookClient(notebook, km=kernel, timeout=300, record_timing=False)
        client.owns_km = True  # it ends the kernel
        client.execute()
    for cell in notebook.cells:
        cell["outputs"] = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    return notebook


def main() -> None:
    import nbformat

    for path in sorted(TUTORIALS.glob("*.ipynb")):
        notebook = executed(path)
        notebook.metadata.pop("language_info", None)  # names the version of Python
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
