"""The tables of a run: what its rules did, and where the perplexity of each of its sources lies."""

from pipeline.plan import TRIMS
from pipeline.report.parts import Table
from pipeline.report.run import counts
from pipeline.report.run.bands import BandedRun
from pipeline.report.text import short, visible

SIZES = {"raw": "conversations", "raw_words": "words", "refined": "kept", "refined_words": "words kept"}
"""Heads of columns of sizes, by the columns of `counts`."""
QUANTILES = {
    "p10": "ppl: 10 %",
    "p25": "25 %",
    "median": "median",
    "p75": "75 %",
    "p90": "90 % below",
    "refined_median": "median of kept",
}
"""Heads of columns of perplexities."""


def rules(run: BandedRun) -> Table:
    """Each rule and what it did, with the words that it dropped if they were measured."""
    words = run.words_dropped
    counted = run.words is not None
    head = ("reason", "drops where", "dropped", *["words dropped"] * counted, "fires on", "unknown for", "because")
    rows: list[tuple[str | int, ...]] = []
    for i, rule in enumerate(run.manifest.rules):
        dropped = (rule.dropped, *[words.get(i, 0)] * counted, rule.fired, rule.nulls)
        rows.append((visible(rule.reason, 200), visible(rule.where, 200), *dropped, visible(rule.because, 300)))
    return Table(head, tuple(rows))


def repairs(run: BandedRun) -> tuple[Table, ...]:
    """Each repair and what it did; no table if the plan has none."""
    rows = [(one.trim, TRIMS[one.trim], one.conversations, visible(one.because, 300)) for one in run.manifest.repairs]
    return (Table(("repair", "removes", "conversations", "because"), tuple(rows)),) if rows else ()


def perplexities(run: BandedRun) -> tuple[Table, ...]:
    """Quantiles of the perplexity of each source; no table for a corpus of one source."""
    source = run.bands["source"]
    if "ppl" not in run.bands or len(source.labels) == 1:
        return ()
    frame = counts.quantiles(run, source)
    sizes = {name: head for name, head in SIZES.items() if name in frame.columns}
    rows = (
        (*row[: len(sizes) + 1], *(None if ppl is None else short(ppl) for ppl in row[len(sizes) + 1 :]))
        for row in frame.select("y", *sizes, *QUANTILES).iter_rows()
    )
    return (Table(("source", *sizes.values(), *QUANTILES.values()), tuple(rows)),)
