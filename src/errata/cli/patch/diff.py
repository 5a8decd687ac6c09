"""`patch diff`: compares two patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from errata.cli.patch.verify import check_numbers
from errata.cli.shared import options, patches
from errata.cli.shared.printing import print_json, say, show_table
from errata.core.formats.counts import counted

if TYPE_CHECKING:
    from errata.artefacts.patch_diff import FactPair, PartAt, PatchDiff, SiteDiff

SHOWN = 50


def diff(first: patches.One, second: patches.One, as_json: options.AsJson = False) -> None:
    """Compare two patches: sites, ranks and norms, facts, settings. No model is loaded."""
    given = patches.located([first, second])
    from errata.artefacts.patch_diff import diff_patches

    a, b = (p.load() for p in given)
    for patch, name in ((a, first), (b, second)):
        check_numbers(patch, name)
    found = diff_patches(a, b)
    if as_json:
        print_json({"patches": [first, second], **found.to_dict()})
        return
    for name, side in ((first, found.a), (second, found.b)):
        say(
            f"{name}: {side.shape} of {side.editor or 'no editor'} for {side.backbone} "
            f"({side.fingerprint[:12]}), {counted(side.edits, 'edit')}, {side.numbers:,} numbers"
        )
    say(_models(found))
    say("numbers and settings of the patches: " + ("the same" if found.identical else "different"))
    say(f"sites: {len(found.sites)}, in common: {len(found.common)}")
    _print_sites(found.sites)
    _print_facts(found.facts)
    say(f"settings that differ: {len(found.settings) or 'none'}")
    for name, (one, other) in found.settings.items():
        say(f"  {name}: {_short(one)} | {_short(other)}")


def _models(found: PatchDiff) -> str:
    if found.same_model is None:
        return "models: one of the patches names none"
    return f"models: {'the same' if found.same_model else 'different ones'}"


def _print_sites(sites: tuple[SiteDiff, ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not sites:
        return
    table = Table("site", "first", "second", "difference", "cosine")
    for s in sites[:SHOWN]:
        numbers = ["" if x is None else f"{x:.3g}" for x in (s.difference, s.cosine)]
        row = (s.site or "(no site)", _part(s.a), _part(s.b), s.note or numbers[0], numbers[1])
        table.add_row(*map(Text, row))
    show_table(table)
    if len(sites) > SHOWN:
        say(f"(the first {SHOWN} of {len(sites)} sites are shown; all of them: --json)")


def _part(part: PartAt | None) -> str:
    if part is None:
        return "-"
    what = "+".join(part.shapes)
    if part.adds:
        what += " dense" if part.rank is None else f" rank {part.rank}"
    else:
        what += f" {len(part.tensors)} tensors"
    return f"{what}, norm {part.norm:.3g}"


def _print_facts(facts: tuple[FactPair, ...]) -> None:
    say(f"facts in common: {len(facts) or 'none'}")
    for f in facts[:SHOWN]:
        asked = f"'{f.question_a}'"
        if f.question_a != f.question_b:
            asked += f" and '{f.question_b}'"
        target = f"both '{f.target_a}'" if f.same_target else f"'{f.target_a}' | '{f.target_b}'"
        say(f"  {f.relation}: {asked}: {target}")
    if len(facts) > SHOWN:
        say(f"  (and {len(facts) - SHOWN} more: --json)")


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
