"""What the stages of value and meaning found in a corpus: their own figures, and a map of its clusters."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.report import charts
from pipeline.report.parts import Figure, Panel, Section, Table
from pipeline.report.run import counts
from pipeline.report.run.bands import BandedRun
from pipeline.report.run.frame import FinishedRun
from pipeline.report.text import visible
from pipeline.store import read_json

FILES = ("quality", "target", "follows", "semantic")
"""Stages that describe what they found in a JSON file of their name."""
MAX_LISTED = 64
"""Maximum number of clusters on the map and in its table, the largest."""
LABELLED = 16
"""Maximum number of clusters on the map that have their words beside them, the largest whose words have room there."""
ROOM = (280, 360)
"""Width and height that a phone has for the map, in pixels."""
LETTER = (5.5, 13.0)
"""Width and height of a letter on the map, in pixels."""


def sections(run: BandedRun) -> list[Section]:
    """The section of value, and that of meaning; none if no stage of theirs was measured."""
    found, made = summaries(run), []
    facts = [row for name in ("quality", "target", "follows") if name in found for row in _facts(name, found[name])]
    if facts:
        says = "How well the models behind the signals of value tell texts apart, on texts that they have not seen."
        made.append(Section("value", "Value", says, tables=(Table(("stage", "what", "found"), tuple(facts)),)))
    if "cluster" in run.bands and found.get("semantic", {}).get("clusters"):
        frame = clusters(run, found["semantic"])
        made.append(Section("meaning", "Meaning", _says(found["semantic"]), (_map(frame),), (_table(frame),)))
    return made


def summaries(run: FinishedRun) -> dict[str, dict[str, Any]]:
    """The JSON files of the stages that wrote one, by stage."""
    paths = {each.name: run.store.stage(each.key) / f"{each.name}.json" for each in run.plan.stages}
    return {name: read_json(paths[name]) for name in FILES if name in paths and paths[name].exists()}


def _facts(name: str, found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What one stage found, a row each; nothing for one that had no model to train."""
    rows = {}
    if name == "quality":
        rows["held-out ROC-AUC, examples against others"] = _number(found.get("auc"))
        rows["examples, others"] = f"{found['like']:,}, {found['other']:,}"
        for key, what in (("words_like", "words of the examples"), ("words_other", "words of the others")):
            rows[what] = visible(", ".join(found[key]), 300)
    elif name == "target" and "auc" in found:
        rows["held-out ROC-AUC of the cross-entropy difference, target against corpus"] = _number(found["auc"])
        for key, what in (("median_target", "the target"), ("median_raw", "the corpus")):
            rows[f"median difference of {what}, nats per token"] = _number(found[key])
        rows["share of the corpus that its model was trained on"] = f"{found['share']:.1%}"
    elif name == "follows":
        judged = f" of {found['judged']:,}" if found["judged"] else ""
        share = found["preference"]
        rows[f"held-out replies{judged} that their own prompt helps more than another's (50 % is chance)"] = (
            "too few replies to train a model on" if share is None else f"{share:.1%}"
        )
    return [(name, what, said) for what, said in rows.items()]


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def clusters(run: BandedRun, found: dict[str, Any]) -> pl.DataFrame:
    """The largest clusters of meaning: yi, raw and refined (conversations), share (kept), x, y, words, example."""
    listed = pl.DataFrame(
        [
            (one["cluster"], one["x"], one["y"], visible(", ".join(one["words"]), 80), visible(one["example"], 160))
            for one in found["clusters"][:MAX_LISTED]
        ],
        schema={"yi": pl.Int16, "x": pl.Float64, "y": pl.Float64, "words": pl.String, "example": pl.String},
        orient="row",
    )
    counted = counts.mix(run, run.bands["cluster"]).select("yi", "raw", "refined")
    frame = counted.join(listed, on="yi", how="inner", maintain_order="left").filter(pl.col("raw") > 0)
    if run.plan.redact:  # an example is cut, and may end within an item
        frame = frame.with_columns(example=pl.lit("(not shown, because personal data are redacted)"))
    return frame.with_columns(share=pl.col("refined") / pl.col("raw"))


def _says(found: dict[str, Any]) -> str:
    what = {"prompt": "first prompts", "reply": "first replies", "conversation": "conversations"}[found["of"]]
    pairs = f"{found['pairs']:,} pairs of different texts have a cosine of {found['floor']:g} or more"
    return f"Clusters of {what} that mean alike. {found['copies']:,} are copies of an earlier one, and {pairs}."


def _map(frame: pl.DataFrame) -> Figure:
    share = (pl.col("share") * 100).round(1)
    tip = pl.format("cluster {}: {}; {} conversations, {} kept ({}%)", "yi", "words", "raw", "refined", share)
    first = pl.col("words").str.split(", ").list.head(2).list.join(", ")
    labels = with_room(frame.select("x", "y", label=first))
    spots = frame.with_columns(labels, tip=tip, pick=pl.format("cluster:{}", "yi"))
    return Figure(
        "meaning",
        "A map of the clusters",
        "A circle is a cluster, its area the conversations in it, its colour the share that was kept. Near circles "
        "mean alike, as far as two of the principal components of their centres show it.",
        (Panel("Clusters", charts.bubbles(spots), frame.drop("example")),),
    )


def with_room(spots: pl.DataFrame) -> pl.Series:
    """The column `label` of x, y and label, empty where it would cover one of an earlier row, or where enough are."""
    wide, high = ((max(at) - min(at)) or 1.0 for at in (spots["x"].to_list(), spots["y"].to_list()))
    taken: list[tuple[float, float, float]] = []
    labels = []
    for x, y, label in spots.iter_rows():
        left, top, half = x / wide * ROOM[0], y / high * ROOM[1], len(label) * LETTER[0] / 2
        free = all(abs(left - a) >= half + b or abs(top - c) >= LETTER[1] for a, c, b in taken)
        if room := free and len(taken) < LABELLED:
            taken.append((left, top, half))
        labels.append(label if room else "")
    return pl.Series("label", labels, pl.String)


def _table(frame: pl.DataFrame) -> Table:
    rows = frame.select(
        "yi",
        "raw",
        "refined",
        (pl.col("share") * 100).round(1).cast(pl.String) + pl.lit(" %"),
        "words",
        pl.col("example").str.replace_all(r"\s+", " "),
    )
    return Table(("cluster", "conversations", "kept", "share kept", "words", "most typical"), tuple(rows.iter_rows()))
