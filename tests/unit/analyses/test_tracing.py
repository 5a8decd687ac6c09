"""`analyze tracing`: against a loop that runs the whole model once per restored state."""

from __future__ import annotations

import pytest
import torch

from errata.analyses.tracing import TracingAnalysis
from errata.analyses.tracing.facts import GROUPS, KnownFact, known_facts
from errata.analyses.tracing.runs import KINDS, FactTrace, TraceSettings, trace
from errata.analyses.tracing.summary import TracingSummary
from errata.core.analysis import Subject
from errata.core.errors import BadSpec
from errata.core.types import Case, Edit, Prompt
from errata.training.optimise import generator
from tests import tiny

TEXTS = (
    ("The shape of New thing is", "New thing"),
    ("New Fact of the ring is of", "New Fact of the ring"),
    ("What is the colour of red", "red"),
)
SETTINGS = TraceSettings(sigma=2.0, copies=2, window=2, layers=(0, 1, 2, 3), seed=5)


def known(bb, picture=None, texts=TEXTS):
    """Cases whose old answer is what the model says, whatever that is."""
    out = []
    for i, (text, subject) in enumerate(texts):
        prompt = Prompt.of(text, picture)
        with torch.no_grad():
            said = bb.logits(bb.encode([prompt]))[0, 0].argsort(descending=True).tolist()
        ids = next(j for j in said if bb.answer_ids(bb.decode([j]), prompt) == (j,))
        old = bb.decode([ids])
        out.append(Case(f"c{i}", Edit(prompt, "green", subject, old), ()))
    return tuple(out)


def facts_of(bb, cases):
    """The cases as facts."""
    out = []
    for case in cases:
        batch = bb.encode([case.edit.prompt], [case.edit.old])
        first, last = (
            f(case.edit.prompt, case.edit.subject) for f in (bb.first_column, bb.last_column)
        )
        columns = [c for c in range(first, int(batch.lengths[0])) if not bool(batch.vision[0, c])]
        fact = KnownFact(
            case.id, case.edit.prompt, batch.targets[0][0], first, last, tuple(columns)
        )
        out.append(fact)
    return out


def output(out):
    return out[0] if isinstance(out, tuple) else out


def modules(bb, kind, layer, window):
    if kind == "states":
        return [bb.blocks[layer]]
    low = layer - window // 2
    around = range(max(0, low), min(bb.depth, low + window))
    return [bb.site(f"text.{i}.{kind}").last for i in around]


def naively(bb, fact, kind, layer, column, copy, s):
    """(clean, corrupted, restored) probability, with torch's hooks in whole forwards."""
    inputs, own = bb.encode([fact.prompt]).inputs, modules(bb, kind, layer, s.window)
    rng = generator(s.seed, "tracing", fact.case, copy)
    noise = s.sigma * torch.randn(fact.last + 1 - fact.first, bb.width, generator=rng)
    kept = {}

    def corrupt(_, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[0, fact.first : fact.last + 1] += noise
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def keep(module, _, out):
        kept[module] = output(out).clone()

    def restore(module, _, out):
        new = output(out).clone()
        width = new.shape[-1]  # some FFNs see all columns as one batch
        new.view(1, -1, width)[0, column] = kept[module].view(1, -1, width)[0, column]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def probability():
        with torch.no_grad():
            return float(bb.model(**inputs).logits[0, -1].softmax(-1)[fact.answer])

    handles = [m.register_forward_hook(keep) for m in own]
    clean = probability()
    for h in handles:
        h.remove()
    handles = [bb.blocks[0].register_forward_pre_hook(corrupt, with_kwargs=True)]
    corrupted = probability()
    handles += [m.register_forward_hook(restore) for m in own]
    restored = probability()
    for h in handles:
        h.remove()
    return clean, corrupted, restored


@pytest.mark.parametrize("family", ["mistral", "llava", "blip2"])
def test_effects_are_those_of_whole_runs(family, pictures):
    bb = tiny.shared(family)
    facts = facts_of(bb, known(bb, None if family == "mistral" else pictures[0], TEXTS[1:]))
    for found in trace(bb, facts, SETTINGS):
        fact = found.fact
        for kind in KINDS:
            for layer in SETTINGS.layers:
                for c, column in enumerate(fact.columns):
                    runs = [naively(bb, fact, kind, layer, column, k, SETTINGS) for k in (0, 1)]
                    clean, corrupted, restored = torch.tensor(runs).mean(0).tolist()
                    assert found.clean == pytest.approx(clean, abs=1e-5)
                    assert found.corrupted == pytest.approx(corrupted, abs=1e-5)
                    assert float(found.effects[kind][layer, c]) == pytest.approx(
                        restored - corrupted, abs=1e-5
                    ), (kind, layer, column)


def test_models_without_finished_columns_give_the_same(monkeypatch):
    bb = tiny.shared("llava")
    facts = facts_of(bb, known(bb))
    one = trace(bb, facts, SETTINGS)
    monkeypatch.setattr(bb, "suffix", lambda state, first: None)
    other = trace(bb, facts, SETTINGS)
    for a, b in zip(one, other, strict=True):
        for kind in KINDS:
            torch.testing.assert_close(a.effects[kind], b.effects[kind], atol=1e-5, rtol=1e-3)


def test_a_fact_does_not_depend_on_its_batch():
    bb = tiny.shared("llava")
    facts = facts_of(bb, known(bb))
    together = trace(bb, facts, SETTINGS)
    for fact, a in zip(facts, together, strict=True):
        (b,) = trace(bb, [fact], SETTINGS)
        for kind in KINDS:
            torch.testing.assert_close(a.effects[kind], b.effects[kind], atol=1e-5, rtol=1e-3)


def test_the_restored_end_is_the_clean_run_and_without_noise_nothing_changes():
    bb = tiny.shared("llava")
    facts = facts_of(bb, known(bb))
    for found in trace(bb, facts, SETTINGS):
        total = found.clean - found.corrupted
        assert abs(total) > 1e-3, "the noise changes something"
        # the answer is read from this state alone
        assert float(found.effects["states"][-1, -1]) == pytest.approx(total, abs=1e-5)
        assert float(found.effects["states"][-1, :-1].abs().sum()) < 1e-5
        if len(found.fact.columns) == 1:  # nothing else is corrupted: it is restored everywhere
            assert found.effects["states"][:, 0].tolist() == pytest.approx([total] * 4, abs=1e-5)
    quiet = TraceSettings(sigma=0.0, copies=1, window=4, layers=(0, 2, 3))
    for found in trace(bb, facts, quiet):
        assert found.corrupted == pytest.approx(found.clean, abs=1e-5)
        assert all(e.abs().max() < 1e-5 for e in found.effects.values())


def test_groups_by_hand():
    fact = KnownFact(
        "c", Prompt.of("x"), 0, 1, 4, (1, 2, 3, 4, 5, 8, 9, 10)
    )  # 6 and 7 are a picture
    assert [GROUPS.index(fact.group(c)) for c in fact.columns] == [0, 1, 1, 2, 3, 4, 4, 5]
    short = KnownFact("c", Prompt.of("x"), 0, 2, 2, (2, 3))
    assert [GROUPS.index(short.group(c)) for c in short.columns] == [2, 5]
    end = KnownFact("c", Prompt.of("x"), 0, 2, 3, (2, 3))
    assert [GROUPS.index(end.group(c)) for c in end.columns] == [0, 5]


def test_only_known_facts_are_traced():
    bb = tiny.shared("llava")
    right = known(bb)
    wrong = Case("w", Edit(right[0].edit.prompt, "green", "New thing", "blue ring"), ())
    unnamed = Case("u", Edit(right[0].edit.prompt, "green", None, right[0].edit.old), ())
    elsewhere = Case("e", Edit(right[0].edit.prompt, "green", "Prompt", right[0].edit.old), ())
    found = known_facts(Subject(bb, (wrong, unnamed, elsewhere, *right), rows=2), 10)
    expected = {c.id for c in right if says(bb, c)}
    assert {f.case for f in found.facts} == expected and expected and found.asked == 4
    assert found.std > 0
    assert len(known_facts(Subject(bb, right), 1).facts) == 1


def says(bb, case):
    batch = bb.encode([case.edit.prompt], [case.edit.old])
    with torch.no_grad():
        return bb.logits(batch)[0, 0].argmax().item() == batch.targets[0][0]


def test_averages_peaks_and_the_suggestion_by_hand():
    def traced(name, mlp):
        fact = KnownFact(name, Prompt.of("x"), 0, 1, 3, (1, 2, 3, 4))
        effects = {k: torch.zeros(2, 4) for k in KINDS}
        effects["mlp"] = torch.tensor(mlp)
        return FactTrace(fact, 0.9, 0.1, effects)

    one = [[0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.4, 0.0]]
    two = [[0.0, 0.0, 0.1, 0.0], [0.0, 0.2, 0.2, 0.0]]
    facts = [traced(f"{n}{i}", x) for i in range(5) for n, x in (("a", one), ("b", two))]
    summary = TracingSummary(facts, [3, 7])
    peak = summary.peaks()["mlp"]["last subject token"]
    assert peak["block"] == 7 and peak["effect"] == pytest.approx(0.3) and peak["n"] == 10
    assert peak["range"] == [7, 7] and peak["agree"] == 1.0
    assert summary.suggested() == 7
    assert any("--set layers=[7]" in line for line in summary.lines())
    assert summary.total.value == pytest.approx(0.8)
    rows = {r[:3]: r[3:] for r in summary.tables()[0].rows}
    assert rows["mlp", "middle subject tokens", 7][0] == pytest.approx(0.1)
    assert ("mlp", "further tokens", 7) not in rows, "no fact has such a token"
    flat = TracingSummary([traced("a", [[0.0] * 4] * 2), traced("b", [[0.0] * 4] * 2)], [3, 7])
    assert flat.suggested() is None and any("no block" in line for line in flat.lines())


def test_an_analysis_depends_on_the_seed_alone(pictures):
    bb = tiny.shared("llava")
    cases = known(bb, pictures[0])
    look = TracingAnalysis(layers=(1, -1), copies=2, noise=20.0)
    one = look.look(Subject(bb, cases, rows=4, seed=1))
    alone = look.look(Subject(bb, cases, rows=1, seed=1))
    other = look.look(Subject(bb, cases, rows=4, seed=2))
    values = [[r[3] for r in f.tables[0].rows] for f in (one, alone, other)]
    assert values[0] == pytest.approx(values[1], abs=2e-5) and values[0] != values[2]
    assert {r[2] for r in one.tables[0].rows} == {1, 3}
    assert one.facts["window"] == 1 and "first look" in one.said[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"facts": 0}, "facts=0: give a number of at least 1"),
        ({"copies": 0}, "copies=0"),
        ({"noise": -1.0}, "noise=-1: give 0 or more"),
        ({"window": 5}, "window=5: give 1 to 4 blocks"),
        ({"layers": (9,)}, "has text blocks 0 to 3"),
    ],
)
def test_what_traces_nothing_is_refused(options, words):
    bb = tiny.shared("llava")
    with pytest.raises(BadSpec, match=words) as e:
        TracingAnalysis(**options).look(Subject(bb, known(bb)))
    assert "\n" not in str(e.value)


def test_no_known_fact_is_one_line(edits):
    bb = tiny.shared("llava")
    cases = tuple(Case(e.id, e, ()) for e in edits)
    with pytest.raises(BadSpec, match="knows none of the 4 facts, of which 0 name"):
        TracingAnalysis().look(Subject(bb, cases))
