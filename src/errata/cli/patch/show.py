"""`patch show`: prints a patch folder."""

from __future__ import annotations

from errata.cli.shared import options, patches
from errata.cli.shared.printing import print_json, say


def show(folder: patches.One, as_json: options.AsJson = False) -> None:
    """Print the header, the sites and the edits of a patch."""
    from errata.core.patch import origins_of
    from errata.core.types import to_json
    from errata.io.patch_folder import read_edits

    (patch,) = patches.located([folder])
    head = patch.head()
    edits = read_edits(patch.folder, head)
    if as_json:
        print_json({**head, "edits": [to_json(e) for e in edits]})
        return
    shape = head.get("settings", {}).get("shape")
    options.print_facts({**head["header"], "shape": shape, "sites": head["sites"]})
    say(f"origin: {', '.join(sorted(origins_of(head['header'], edits)))}")
    say(f"edits: {len(edits)}")
    for e in edits[:50]:
        images = "".join(f" [{i.shown}]" for i in e.prompt.images)
        say(f"  {e.prompt.text}{images} -> {e.target}")
