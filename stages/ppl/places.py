"""Places of conversations in their corpus: percentiles, and distances from conversations of the same kind."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.columns import CHUNK, chunks
from stages.files import scratch, zeros

HEAD, TAIL = 30, 60
"""Percentiles between head, middle and tail, as in CCNet (cc_net/perplexity.py:258)."""
MIN_SCORED = 100
"""Minimum number of scored conversations to estimate a spread from. Smaller sources are pooled; if they have fewer
together, their `ppl_z` is null."""

_MIN_GROUP, _MAX_GROUPS = 200, 20  # conversations of similar length that are compared, and groups of them per source
_MAD = 1.4826  # ratio of the standard deviation to the median distance in a normal distribution
_MIN_SPREAD = 0.2  # of ln ppl: in a uniform corpus, a fifth more perplexity is no outlier
_LAST = np.uint64((1 << 64) - 1)  # sorts last: the source or the length of a conversation without a score
_LOW = np.uint64(32)

Keys = NDArray[np.uint64]


def place(parts: Iterable[pl.DataFrame], sizes: Sequence[int], folder: Path) -> Iterator[pl.DataFrame]:
    """The merged signals of each part of a corpus, from `ppl`, `ppl_tokens` and `source`; `sizes` are those of parts.

    `ppl_z` is the number of standard deviations that ln ppl lies above (or below) the median of conversations of the
    same source and similar length, because sources differ and short conversations vary more. The spread is estimated
    for each side by the median distance to the median, so that neither outliers nor near-copies affect it.

    Memory: a part, and a group of similar conversations, at most a twentieth of a source. Columns are sorted in files
    of `folder`, 48 bytes per conversation.
    """
    starts = np.cumsum([0, *sizes])
    with scratch(folder, "places") as aside:
        size = int(starts[-1])
        ppl, keys = zeros(aside / "ppl", np.float64, size), zeros(aside / "keys", np.uint64, size)
        tokens, ranks = zeros(aside / "tokens", np.uint32, size), zeros(aside / "ranks", np.uint32, size)
        for part, begin, end in zip(parts, starts, starts[1:], strict=False):
            ppl[begin:end] = part["ppl"].fill_null(np.nan)
            tokens[begin:end] = part["ppl_tokens"].fill_null(0)
            keys[begin:end] = np.where(part["ppl"].is_null(), _LAST, part["source"].hash())
        ordered = _in_order(ppl, aside / "ordered")
        for here in chunks(size):
            ranks[here] = np.searchsorted(ordered, ppl[here])
        group, spreads = _groups(ordered, ranks, tokens, keys, aside)
        scored = int(np.searchsorted(ordered, np.inf, "right"))
        for some in _together(starts):
            begin, end = int(some[0]), int(some[-1])
            signals = _signals(ordered, ranks[begin:end], scored, spreads[group[begin:end]])
            yield from (signals[a - begin : b - begin] for a, b in pairwise(some))


def _in_order(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """Values sorted in a new file, NaN last."""
    ordered = zeros(path, values.dtype.type, len(values))
    ordered[:] = values
    ordered.sort()
    return ordered


def _together(starts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Where parts that make up about `CHUNK` conversations begin, and where the last of them ends."""
    cuts = np.unique(np.searchsorted(starts[:-1], np.arange(0, max(starts[-1], 1), CHUNK)))
    return (starts[a : b + 1] for a, b in pairwise([*cuts, len(starts) - 1]))


def _groups(
    ordered: NDArray[np.float64], ranks: NDArray[np.uint32], tokens: NDArray[np.uint32], keys: Keys, aside: Path
) -> tuple[NDArray[np.uint32], pl.DataFrame]:
    """The group of each conversation, and the center and the spreads of each; `keys` holds sources, and is changed.

    The last group is that of conversations without a `ppl_z`, whose values are null.
    """
    sources = _large(_in_order(keys, aside / "sources"))
    for here in chunks(len(keys)):  # by source, the pooled ones last, and by length
        known = np.append(sources, _LAST)
        at = np.searchsorted(sources, keys[here])
        at = np.where(known[at] == keys[here], at, len(sources)).astype(np.uint64)
        keys[here] = np.where(keys[here] == _LAST, _LAST, at << _LOW | tokens[here])
    lengths = _in_order(keys, aside / "lengths")
    begins = np.searchsorted(lengths, np.arange(len(sources) + 2, dtype=np.uint64) << _LOW)
    scored = np.diff(begins)
    groups = np.where(scored < MIN_SCORED, 0, np.clip(scored // _MIN_GROUP, 1, _MAX_GROUPS))
    ends = np.append(groups.cumsum(), groups.sum())
    group = zeros(aside / "group", np.uint32, len(keys))
    for here in chunks(len(keys)):
        of = (keys[here] >> _LOW).astype(np.int64)
        of[np.append(groups, 0)[np.minimum(of, len(groups))] == 0] = len(groups)
        first, many, total = (np.append(some, 0)[of] for some in (ends[:-1] - groups, groups, scored))
        rank = np.searchsorted(lengths, keys[here]) - np.append(begins[:-1], 0)[of]
        group[here] = np.where(of < len(groups), first + rank * many // np.maximum(total, 1), ends[-1])
        keys[here] = group[here].astype(np.uint64) << _LOW | ranks[here]
    keys.sort()  # by group and perplexity
    cuts = np.searchsorted(keys, np.arange(ends[-1] + 1, dtype=np.uint64) << _LOW)
    low = np.uint64(0xFFFFFFFF)
    spreads = [_spread(pl.Series(ordered[(keys[a:b] & low).astype(np.int64)])) for a, b in pairwise(cuts)]
    columns = ["center", "above", "below"]
    return group, pl.DataFrame([*spreads, (None, None, None)], dict.fromkeys(columns, pl.Float64), orient="row")


def _large(ordered: Keys) -> Keys:
    """The keys that at least `MIN_SCORED` conversations have, of all in order."""
    found = np.unique(ordered[::MIN_SCORED])  # a run of so many equal keys holds one of these places
    sizes = np.searchsorted(ordered, found, "right") - np.searchsorted(ordered, found)
    return found[(sizes >= MIN_SCORED) & (found < _LAST)]


def _spread(ppl: pl.Series) -> tuple[Any, Any, Any]:
    """The median of ln ppl, and the medians of the distances above and below it."""
    logs = ppl.log()
    center = logs.median()
    far = logs - center
    return center, far.filter(far > 0).median(), far.filter(far < 0).median()


def _signals(
    ordered: NDArray[np.float64], ranks: NDArray[np.uint32], scored: int, spreads: pl.DataFrame
) -> pl.DataFrame:
    """The merged signals of some conversations from the number of those with a lower perplexity."""
    low = ranks.astype(np.int64)
    high, values = low + 1, ordered[np.minimum(low, len(ordered) - 1)]
    after = ordered[np.minimum(high, len(ordered) - 1)]
    ties = np.flatnonzero((after == values) & (high < len(ordered)))
    high[ties] = np.searchsorted(ordered, values[ties], "right")
    percentile, far = (pl.col("rank") - 0.5) / scored * 100, pl.col("ppl").log() - pl.col("center")
    bucket = pl.when(percentile < HEAD).then(pl.lit("head")).when(percentile < TAIL).then(pl.lit("middle"))
    spread = pl.when(far > 0).then("above").otherwise(-pl.col("below")) * _MAD
    known = pl.when(pl.col("ppl").is_not_null())
    return (
        pl.DataFrame({"ppl": pl.Series(values).fill_nan(None), "rank": (low + 1 + high) / 2})
        .hstack(spreads)
        .select(
            ppl_percentile=known.then(percentile),
            ppl_bucket=known.then(bucket.otherwise(pl.lit("tail"))),
            ppl_z=far / pl.max_horizontal(spread, pl.lit(_MIN_SPREAD)),
        )
    )
