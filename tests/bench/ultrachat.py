"""What the plan `ultrachat` drops from UltraChat, and whether a reader agrees: `python -m tests.bench.ultrachat`.

Reads the 804 dialogues of ultrachat_small (the real test data, see tests/conftest.py). One half, drawn by a hash of the
prompt's id, was read when the rules were made. Of the other half only what the rules drop was read. The labels are in
`ultrachat_labels.csv`: the prompt's id, the reason, and 1 if the reader would drop the dialogue for it. For each reason
that a signal of `heuristics` gives, this prints what it drops first and how often the reader agrees, by half, with
Wilson's 95 % interval. `--unlabelled` prints the drops without a label instead.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import polars as pl

from pipeline import plan as planning
from pipeline.rules import Drop
from stages.heuristics import Heuristics
from tests.conftest import SHARED

LABELS = Path(__file__).with_name("ultrachat_labels.csv")
Z = 1.96
"""Standard deviations of a 95 % interval."""


def is_held_out(prompt_id: str) -> bool:
    """Whether a dialogue is of the half that was not read when the rules were made."""
    return bool(int(hashlib.sha256(f"half {prompt_id}".encode()).hexdigest()[:8], 16) % 2)


def interval(agreed: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    share, slack = agreed / count, Z * Z / count
    middle = (share + slack / 2) / (1 + slack)
    half = Z / (1 + slack) * (share * (1 - share) / count + slack / count / 4) ** 0.5
    return middle - half, middle + half


def batch(path: Path) -> pl.DataFrame:
    """The dialogues of a file as a stage reads them, and `prompt_id`."""
    field = pl.element().struct.field
    contents = pl.col("messages").list.eval(field("content"))
    messages = pl.col("messages").list.eval(pl.struct(field("role"), field("content")))
    return pl.read_parquet(path).select(
        "prompt_id", messages.alias("messages"), prompt=contents.list.first(), text=contents.list.join("\n")
    )


def drops(dialogues: pl.DataFrame) -> pl.DataFrame:
    """The dialogues that a rule drops: `prompt_id`, the first `reason`, `held_out`."""
    plan = planning.load(planning.find("ultrachat")).with_stages(["heuristics"])
    signals = Heuristics().measure(dialogues)
    fired = [pl.when(rule.apply(signals)).then(pl.lit(rule.reason)) for rule in plan.rules if isinstance(rule, Drop)]
    found = dialogues.select("prompt_id", reason=pl.coalesce(fired)).drop_nulls("reason")
    return found.with_columns(held_out=pl.col("prompt_id").map_elements(is_held_out, return_dtype=pl.Boolean))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--unlabelled", action="store_true")
    given = parser.parse_args()
    dialogues = batch(SHARED / "data" / "chat" / "ultrachat_small.parquet")
    labelled = drops(dialogues).join(pl.read_csv(LABELS), on=["prompt_id", "reason"], how="left")
    if given.unlabelled:
        sys.stdout.write(labelled.filter(pl.col("agree").is_null()).write_csv())
        return
    sys.stdout.write("| reason | half | drops | labelled | agreed | share | 95 % interval |\n|" + " --- |" * 7 + "\n")
    for reason in [*sorted(set(labelled["reason"])), "all"]:
        for held_out in (False, True):
            rows = labelled.filter(
                (pl.col("held_out") == held_out) & ((pl.col("reason") == reason) | (reason == "all"))
            )
            marks = rows["agree"].drop_nulls().to_list()
            if marks:
                low, high = interval(sum(marks), len(marks))
                share = f"{sum(marks) / len(marks):.0%} | {low:.0%} to {high:.0%}"
                half = "held out" if held_out else "read"
                sys.stdout.write(f"| `{reason}` | {half} | {rows.height} | {len(marks)} | {sum(marks)} | {share} |\n")


if __name__ == "__main__":
    main()
