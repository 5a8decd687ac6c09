"""A hook reads or changes the activations at named sites of a model.

A recorder is a hook that reads. A patch (`errata.core.patch`) is a hook that changes, and that can
be saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from errata.core.hooks.context import HookContext

if TYPE_CHECKING:
    from errata.core.types import Prompt


class Hook:
    """Reads or changes the activations at its sites while it is applied.

    sites:     the sites where it acts. observes: those of them that it only reads.
    decides:   it makes decisions from the prompt (it then needs prompt lengths or a mask).
    pointwise: its effect on a column depends on that column alone, so that it may be given only the
               columns that an answer is read from.
    by_column: it may be given only the columns that an answer is read from, whatever it decides
               about whole rows. Pointwise hooks may be, too.
    causal:    its effect on a column depends on the columns up to it and on the row's
               `HookContext.rows` alone, never on where the prompt ends, so that prompts with a
               common prefix can share its columns. Pointwise hooks are causal too.
    ahead:     the site whose hidden state it decides from, if that lies above a site where it acts.
               The prompt then first runs up to there without edits (`HookContext.dry_run`).
    rows:      number of rows of a row patch (row b of a batch uses row `HookContext.rows[b]`); None
               if it acts on all rows alike.
    """

    decides: bool = False
    pointwise: bool = False
    by_column: bool = False
    causal: bool = False
    ahead: str = ""
    rows: int | None = None
    sites: frozenset[str]
    observes: frozenset[str] = frozenset()

    def __init__(self, sites: Iterable[str] = ()) -> None:
        self.sites = frozenset(sites)

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        """The site's input [B, T, n], changed or as it is."""
        return x

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        """The site's output [B, T, o], changed or as it is; x [B, T, n] is its input."""
        return y

    def read(self, prompts: Sequence[Prompt], model: Any, ctx: HookContext) -> None:
        """Decides from the prompts themselves, before the model runs; see `reads_prompts`.

        Called once per question, with a prompt per row of the batch; `ctx.decide` keeps what is
        decided. model: the backbone, which may be asked inside `model.unedited()`.
        """
        for member in self.members() or ():
            member.read(prompts, model, ctx)

    def decided(self, ctx: HookContext) -> Mapping[int, Mapping[str, Tensor]]:
        """Its decisions for the question of `ctx`, for analyses: block -> name -> [B, ...].

        Empty for a hook that decides nothing or does not report it.
        """
        return {}

    @property
    def rewrites(self) -> bool:
        """Whether it rewrites the prompt before the model sees it."""
        return False

    @property
    def reads_prompts(self) -> bool:
        """Whether it decides from the prompts themselves (`read`)."""
        return any(member.reads_prompts for member in self.members() or ())

    def members(self) -> Sequence[Hook] | None:
        """The hooks that a combination consists of, in order; None for a single hook."""
        return None

    def acting(self) -> Sequence[Hook]:
        """The hooks that run instead of it, with the same effect; by default the hook itself."""
        return (self,)


def walk(hook: Hook) -> Iterator[Hook]:
    """The hook and all its members, and their members."""
    yield hook
    for member in hook.members() or ():
        yield from walk(member)


def by_columns(hooks: Iterable[Hook]) -> bool:
    """Whether all of them may be given only the columns that an answer is read from."""
    return all(h.pointwise or h.by_column for h in hooks)


def flat(hooks: Iterable[Hook]) -> list[Hook]:
    """The same hooks with every stack replaced by its members; row patches stay whole."""
    out: list[Hook] = []
    for hook in hooks:
        members = hook.members() if hook.rows is None else None
        out.extend([hook] if members is None else flat(members))
    return out


def flat_on_row(hooks: Iterable[Hook], row: int) -> list[Hook]:
    """The hooks that act on row `row` of a batch, in order."""
    out: list[Hook] = []
    for hook in hooks:
        members = hook.members()
        if members is None:
            out.append(hook)
        elif hook.rows is None:
            out += flat_on_row(members, row)
        else:
            out += flat_on_row([members[row]], 0)
    return out
