"""Whether the screen sees planted damage: the embedded default beside itself with one kind of damage at a time.

    python -m tests.bench.plant                       every kind that chitchat can have; about 5 CPU minutes
    python -m tests.bench.plant --kinds shuffled_words exact_copy --share 0.25

All damaged corpora share one split and one vocabulary, and each is scored on test conversations of the undamaged corpus
that it does not change: a model of damaged text predicts damaged text better, and the replies of a changed conversation
may stand in another one. An edited conversation keeps the place of its original in each
order, as in `refine compare`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import refine
from pipeline.experiments import corpus as corpora
from pipeline.plant.kinds import KINDS
from tests.bench.screen import prepared
from trainer.experiment import screen as screening
from trainer.prepare.arms import Mask, Union, distinct
from trainer.scaling import difference

BUDGETS = tuple(100_000 // 2**i for i in reversed(range(6)))
SHARE = 0.25
"""Share of the conversations that are damaged or copied; 44 % of chitchat have no reply and are not damaged."""


def variants(kinds: list[str], share: float, folder: Path) -> tuple[Union, dict[str, Mask]]:
    """The union of the clean and all damaged corpora, and which of its rows each has; kinds without damage are omitted.

    An edited conversation has the key of its original, a copy one of its own; both are in the original's group.
    """
    clean = corpora.read(None).frame
    keys, groups = distinct(corpora.keys(clean["text"])), corpora.groups(clean["text"])
    frames, every, clusters, rows = [clean], [keys], [groups], {"clean": np.arange(len(clean))}
    for kind in kinds:
        try:
            damage = refine.plant(out=folder / kind, kinds=kind, share=share)
        except refine.RefineError as error:
            sys.stdout.write(f"{kind}: {error}\n")
            continue
        made = pl.read_parquet(damage.path).filter(planted_kind=kind)
        origin = made.select(id=pl.coalesce("planted_of", "id"))
        rows_of = clean.with_row_index("row").select("row", "id")
        of = origin.join(rows_of, on="id", how="left", maintain_order="left")["row"].to_numpy()
        edits = corpora.conversations(made)
        start = sum(map(len, frames))
        frames.append(edits)
        copies = made["planted_of"].is_not_null().all()
        every.append(distinct(np.concatenate([keys, keys[of]]))[len(keys) :] if copies else keys[of])
        clusters.append(groups[of])
        kept = rows["clean"] if copies else np.setdiff1d(rows["clean"], of)
        rows[kind] = np.concatenate([kept, np.arange(start, start + len(edits))])
    whole = pl.concat(frames)
    masks = {name: np.isin(np.arange(len(whole)), which) for name, which in rows.items()}
    return Union(whole, np.concatenate(every), np.concatenate(clusters), {"clean": masks["clean"]}), masks


def table(kinds: list[str], share: float, workers: int) -> None:
    """Print the difference of PPL that each kind makes."""
    with tempfile.TemporaryDirectory(prefix="refine-plant-") as scratch:
        union, masks = variants(kinds, share, Path(scratch))
        arms = prepared(union, masks, Path(scratch) / "data")
        learned = screening.screen(arms, union, list(masks), BUDGETS, placebos=0, workers=workers)
    sys.stdout.write("| kind | conversations | tokens | PPL, damaged against clean, per token | alpha |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- |\n")
    for kind in list(masks)[1:]:
        test = np.stack([arms.tests["clean"] & arms.tests[kind]] * 2)
        law = difference(learned.points("clean", test), learned.points(kind, test))
        low, high = (f"{math.expm1(end):+.1%}" for end in law.ln_ratio_interval or (math.nan, math.nan))
        least, most = (f"{end:+.4f}" for end in law.delta_alpha_interval or (math.nan, math.nan))
        sys.stdout.write(
            f"| `{kind}` | {masks[kind].sum():,} | {learned.tokens[kind]:,} | "
            f"{math.expm1(law.ln_ratio):+.1%} ({low} to {high}) | {law.delta_alpha:+.4f} ({least} to {most}) |\n"
        )


def main() -> None:
    """Print the table in Markdown."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kinds", nargs="*", default=[*KINDS])
    asked.add_argument("--share", type=float, default=SHARE)
    asked.add_argument("--workers", type=int, default=1)
    given = asked.parse_args()
    table(given.kinds, given.share, given.workers)


if __name__ == "__main__":
    main()
