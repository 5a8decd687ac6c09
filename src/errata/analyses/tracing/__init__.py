"""Tracing: which states of which tokens carry a fact that the model knows.

Source: causal tracing, Meng et al. 2022 (ROME, section 2), and its code (kmeng01/rome 0874014). A
fact is run clean; with Gaussian noise on the embeddings of its subject; and with that noise and one
state restored to its clean value: the hidden state after block l at one token, or the outputs of
the FFNs or attentions of a window of blocks around l at that token. The *total effect* is
p(answer | clean) - p(answer | corrupted), the *indirect effect* of a state
p(answer | restored) - p(answer | corrupted). The answer counts by its first token, as there.

Differences: the noise is added to what enters block 0, which has the positions in it where a model
adds them to its embeddings. Only text tokens from the subject on are restored: what comes before
it is not changed by the noise. Tokens and their groups are those of the last mention of the
subject; pictures stay clean. A fact is known if its whole answer is what the model says greedily.
"""

from __future__ import annotations

from dataclasses import dataclass

from errata.analyses.tracing.facts import known_facts
from errata.analyses.tracing.runs import FactTrace, TraceSettings, trace
from errata.analyses.tracing.summary import TracingSummary
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Findings
from errata.core.formats.counts import counted
from errata.core.hooks.modes import in_ordinary_modes


class TracingAnalysis(Analysis):
    """Causal tracing: restored states, FFNs and attentions of known facts, by group of tokens."""

    name = "tracing"
    benchmark = "microworld:vqa@dev"

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """facts: most known facts that are traced. layers: restored blocks, negative from the end;
        () = all.

        noise: its standard deviation, in units of that of the subjects' embeddings. copies: of the
        noise, whose results are averaged. window: number of blocks around l whose FFNs or
        attentions are restored together; 0 = a fifth of all blocks.
        """

        facts: int = 100
        layers: tuple[int, ...] = ()
        noise: float = 3.0
        copies: int = 1
        window: int = 0

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without known facts, or for settings that trace nothing."""
        bb, c = subject.backbone, self.config
        self._check(bb.depth)
        known = known_facts(subject, c.facts)
        if not known.facts:
            raise BadSpec(
                f"{bb.name} knows none of the {len(subject.cases)} facts, of which {known.asked} "
                "name their subject and their present answer. Name a --benchmark with such facts "
                "(counterfact:FILE@dev/known), or raise --limit."
            )
        layers = tuple(sorted({bb.layer(i) for i in c.layers}) or range(bb.depth))
        settings = TraceSettings(
            sigma=c.noise * known.std, copies=c.copies, window=c.window or round(bb.depth / 5) or 1,
            layers=layers, seed=subject.seed,
        )  # fmt: skip
        traces: list[FactTrace] = []
        while len(traces) < len(known.facts):
            traces += trace(bb, known.facts[len(traces) :][: subject.rows], settings)
            subject.progress("tracing facts", len(traces), len(known.facts))
        summary = TracingSummary(traces, layers)
        window = f"windows of {settings.window} blocks" if settings.window > 1 else "single blocks"
        caption = (
            f"{bb.name}, {subject.benchmark}: {counted(len(traces), 'known fact')} of "
            f"{known.asked} asked. Average indirect effect: p(answer) with one state restored, "
            f"minus p(answer) with noise on the subject (sigma {settings.sigma:.3g}, "
            f"{c.copies} x), which is {summary.corrupted.value:.2f}; clean it is "
            f"{summary.clean.value:.2f}. FFN and attention: {window}."
        )
        return Findings(
            (summary.figure(caption),),
            summary.tables(),
            {"known": len(traces), "asked": known.asked, "std of embeddings": known.std,
             "sigma": settings.sigma, "window": settings.window, "blocks": list(layers),
             **summary.facts()},
            (*summary.lines(), *first_look(len(traces), "known fact")),
        )  # fmt: skip

    def _check(self, depth: int) -> None:
        c = self.config
        if depth < 2:
            raise BadSpec("tracing needs a model with two text blocks or more.")
        for name, value, least in (("facts", c.facts, 1), ("copies", c.copies, 1)):
            if value < least:
                raise BadSpec(f"{name}={value}: give a number of at least {least}.")
        if c.noise < 0:
            raise BadSpec(f"noise={c.noise:g}: give 0 or more, in standard deviations.")
        if not 0 <= c.window <= depth:
            raise BadSpec(f"window={c.window}: give 1 to {depth} blocks, or 0 for a fifth of them.")
