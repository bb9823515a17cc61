"""Diagnosis: what to look at next where a plan keeps nearly everything, by the signals that were measured."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from pipeline.plan import Plan
from pipeline.signals import decisions_of, signals_of
from pipeline.store import Store

CLEAN = 0.95
"""Share of the conversations at or above which a plan keeps nearly everything."""
LEAST = 0.001
"""Minimum share of the kept conversations that a condition in a diagnosis is true of."""
MAX_SHOWN = 5
"""Maximum number of conditions in a diagnosis."""

UNANSWERED = "last_role = 'user'"
CONDITIONS = {
    UNANSWERED: "end on a user without a reply",
    "refusals > 0": "have a reply that declines",
    "ai_mentions > 0": "have a reply that mentions being a model",
    "repeated_replies > 0": "have a reply twice",
    "echoes > 0": "have a reply that repeats the user",
    "reply_repetition > 0.2": "have replies that repeat themselves",
    "bad_chars > 0": "have broken characters",
    "prompt_copies > 1": "have the first prompt of another",
    "repeated_answer_share > 0.5": "give mostly answers that others give too",
    "dup_span_share > 0.5": "are mostly passages that others have too",
    "contamination > 0": "share a passage with an evaluation set",
    "pii > 0": "hold personal data",
    "toxicity > 0.5": "have a message that is more likely abusive than not",
}
"""Conditions over signals that are worth a look, and what is true of the conversations that meet them."""

WEAKEST = {"ppl_z": True, "toxicity": True, "reply_repetition": True, "nearest_jaccard": True, "quality": False}
"""Signals by which a conversation can be the weakest, and whether the largest value is."""


@dataclass
class _Findings:
    """What is true of the conversations that are kept: numbers by condition and language, the weakest by signal."""

    kept: int = 0
    met: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    weakest: dict[str, tuple[float, str]] = field(default_factory=dict)


def diagnose(plan: Plan, store: Store, kept_share: float) -> tuple[str, ...]:
    """Lines for the summary of a run: none unless nearly everything is kept."""
    if kept_share < CLEAN:
        return ()
    found = _find(plan, store)
    shown = [f"  {count / found.kept:6.1%}  {what}  ({condition})" for count, what, condition in _shown(found)]
    first = f"these rules keep {kept_share:.1%} of the conversations: this corpus is clean by them"
    lines = [f"{first}. Of what is kept,", *shown] if shown else [f"{first}, and no other signal stands out"]
    ways = ["`refine decide RUN --drop` tries a condition"] * bool(shown)
    if weakest := [f"{one} ({name} {value:.3g})" for name, (value, one) in found.weakest.items()]:
        lines.append(f"its weakest {'are' if len(weakest) > 1 else 'is'} {', '.join(weakest)}")
        ways.append("`refine show RUN --id` shows a conversation")
    if UNANSWERED in found.met and "unanswered" not in plan.trims:
        ways.append('[[repair]] trim = "unanswered" trims ends without a reply')
    return (*lines, "; ".join([*ways, "`refine plant` and `refine audit` say what these rules would find"]))


def _shown(found: _Findings) -> list[tuple[int, str, str]]:
    """The most frequent findings: conversations, what is true of them, and the condition."""
    counts = [(count, CONDITIONS[condition], condition) for condition, count in found.met.items()]
    if len(found.languages) > 1:
        most, count = min(found.languages.items(), key=lambda one: (-one[1], one[0]))
        counts.append((sum(found.languages.values()) - count, f"are not in {most}", f"language != '{most}'"))
    frequent = [one for one in counts if one[0] >= LEAST * found.kept]
    return sorted(frequent, key=lambda one: (-one[0], one[2]))[:MAX_SHOWN]


def _find(plan: Plan, store: Store) -> _Findings:
    """What is true of the kept conversations, read shard by shard."""
    found, conditions = _Findings(), dict(_measured(plan))
    weakest = [name for name in WEAKEST if name in plan.signals]
    language = ["language"] * (plan.signals.get("language") == pl.String)
    columns = sorted({*weakest, *language, *(name for names in conditions.values() for name in names)})
    for shard in store.shards():
        kept = signals_of(plan, store, shard, columns).filter(decisions_of(store, shard)["keep"])
        found.kept += kept.height
        met = kept.select(pl.sql_expr(condition).sum().alias(condition) for condition in conditions)
        found.met.update({condition: met[condition].item() for condition in met.columns if met[condition].item()})
        for name in language:
            found.languages.update(dict(kept[name].drop_nulls().value_counts().iter_rows()))
        for name in weakest:
            ranked = kept.select(pl.col(name).cast(pl.Float64), "id").drop_nulls()
            ranked = ranked.sort([name, "id"], descending=[WEAKEST[name], False])
            for value, one in ranked.head(1).iter_rows():
                if WEAKEST[name] and not value:
                    continue  # it has nothing of what the signal counts
                before = found.weakest.get(name)
                if before is None or (value > before[0] if WEAKEST[name] else value < before[0]):
                    found.weakest[name] = (value, one)
    return found


def _measured(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """The conditions over signals that were measured and that no rule has as it is, and the signals they read."""
    rules = {rule.where for rule in plan.rules}
    for condition in CONDITIONS:
        names = pl.sql_expr(condition).meta.root_names()
        if set(names) <= set(plan.signals) and condition not in rules:
            yield condition, names
