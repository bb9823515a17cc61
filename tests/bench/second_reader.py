"""Whether a second reader agrees with what the plans drop: `python -m tests.bench.second_reader`.

The labels are in `second_reader_labels.csv`: plan and reason ("kept" or "kept pair" if nothing is dropped), corpus and
id of a conversation, whether the reader would drop it (`drop`), and would do so knowing the reason (`informed`).
Round 1 was blind: drops and kept conversations in random order, without plan and reason, a duplicate beside what stays.
Round 2 was not: the reader looked at what the changed plan `strict` drops. Rounds 3 and 4 are of another language
model: round 3 was blind, of drops that no one had read, the middle of long ones left out; round 4 was not. Printed are
shares by plan and reason with Clopper-Pearson intervals, and Cohen's kappa of rules and reader in round 1, and of both
readers on the drops of UltraChat that both have labelled.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from scipy.stats import binomtest

from tests.bench.ultrachat import LABELS
from tests.conftest import SHARED

SECOND = Path(__file__).with_name("second_reader_labels.csv")
ULTRACHAT = "ultrachat_small"


def kappa(one: pl.Series, other: pl.Series) -> float:
    """Cohen's kappa of two series of 0 and 1: their agreement beyond chance."""
    chance = float((one.mean() * other.mean()) + (1 - one.mean()) * (1 - other.mean()))  # type: ignore[operator]
    return ((one == other).mean() - chance) / (1 - chance)  # type: ignore[operator, return-value]


def interval(agreed: int, count: int) -> str:
    """The Clopper-Pearson interval of a share, at 95 %."""
    ends = binomtest(agreed, count).proportion_ci(0.95, method="exact")
    return f"{ends.low:.0%} to {ends.high:.0%}"


def both_readers(labels: pl.DataFrame) -> pl.DataFrame:
    """The verdicts of both readers on drops of UltraChat: `agree` of the first, `drop` of the second."""
    source = SHARED / "data" / "chat" / f"{ULTRACHAT}.parquet"
    rows = pl.read_parquet(source, columns=["prompt_id"]).with_row_index("row")
    second = labels.filter(corpus=ULTRACHAT, plan="ultrachat", round=1)
    second = second.with_columns(row=pl.col("id").str.split("-").list.last().cast(pl.UInt32))
    return second.join(rows, on="row").join(pl.read_csv(LABELS), on=["prompt_id", "reason"])


def main() -> None:
    """Print the tables."""
    labels = pl.read_csv(SECOND).with_columns(
        where=pl.when(corpus=ULTRACHAT).then(pl.lit(ULTRACHAT)).otherwise(pl.lit("others"))
    )
    sys.stdout.write(
        "| round | plan | corpora | reason | read | would drop | 95 % interval | informed |\n|" + " --- |" * 8 + "\n"
    )
    for key, rows in sorted(labels.group_by("round", "plan", "where", "reason")):
        drop, informed = int(rows["drop"].sum()), int(rows["informed"].sum())
        number, plan, where, reason = key
        cells = (number, f"`{plan}`", where, f"`{reason}`", rows.height, drop, interval(drop, rows.height), informed)
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    blind = labels.filter(round=1).with_columns(rule=(~pl.col("reason").str.starts_with("kept")).cast(pl.Int64))
    for plans, rows in (
        ("ultrachat", blind.filter(plan="ultrachat")),
        ("others", blind.filter(pl.col("plan") != "ultrachat")),
    ):
        sys.stdout.write(f"kappa of rules and reader, {plans}: {kappa(rows['rule'], rows['drop']):.2f}\n")
    both = both_readers(labels)
    same = int((both["agree"] == both["drop"]).sum())
    sys.stdout.write(f"both readers: {same} of {both.height} alike, kappa {kappa(both['agree'], both['drop']):.2f}\n")


if __name__ == "__main__":
    main()
