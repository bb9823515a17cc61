"""Rules decide on signals alone: the first that fires gives the reason, and the best of duplicates stays."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import rules
from pipeline.rules import Drop, KeepBest, Pairs, RuleError, decide

SIGNALS = pl.DataFrame({"id": ["a", "b", "c"], "x": [1, 5, None], "y": [0.5, None, 0.1]})


def test_the_first_rule_that_fires_gives_the_reason() -> None:
    """Every rule says whether it fires; the reason is the first one's."""
    found = decide(SIGNALS, {}, [Drop("small", "x < 3"), Drop("low", "y < 0.7")])
    assert found.select("keep", "reason", "small", "low").rows() == [
        (False, "small", True, True),
        (True, None, False, False),
        (False, "low", False, True),
    ]


def test_null_is_not_a_reason() -> None:
    """A signal that could not be measured drops nobody, neither by a condition nor by its negation."""
    found = decide(SIGNALS, {}, [Drop("r", "x > 3"), Drop("s", "NOT (x > 3)")])
    assert found["reason"].to_list() == ["s", "r", None]


def test_without_rules_everything_is_kept() -> None:
    """No rule, no reason."""
    assert decide(SIGNALS, {}, [])["keep"].to_list() == [True] * 3


@st.composite
def corpora(draw: st.DrawFn) -> tuple[pl.DataFrame, Pairs, dict[tuple[int, int], float]]:
    """Small corpora: exact groups, near pairs among their first members, an order with ties and nulls."""
    n = draw(st.integers(1, 12))
    group = [draw(st.sampled_from([*{*range(i + 1)}])) for i in range(n)]
    group = [g if group[g] == g else i for i, g in enumerate(group)]  # a group is named by its first member
    heads = sorted(set(group))
    near: dict[tuple[int, int], float] = {}
    for i, a in enumerate(heads):
        for b in heads[i + 1 :]:
            if draw(st.booleans()):
                near[a, b] = draw(st.sampled_from([0.5, 0.74, 0.75, 0.9, 1.0]))
    ids = [f"id{i:02d}" for i in range(n)]
    signals = pl.DataFrame(
        {
            "id": ids,
            "size": [draw(st.none() | st.integers(0, 3)) for _ in range(n)],
            "bad": [draw(st.none() | st.booleans()) for _ in range(n)],
        },
        schema={"id": pl.String, "size": pl.Int64, "bad": pl.Boolean},
    )
    frame = pl.DataFrame(
        [(ids[a], ids[b], j) for (a, b), j in near.items()],
        schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32},
        orient="row",
    )
    both = {}
    for i in range(n):
        for k in range(n):
            a, b = sorted((group[i], group[k]))
            both[i, k] = 1.0 if a == b else near.get((a, b), 0.0)
    return signals, Pairs(pl.Series([ids[g] for g in group]), frame), both


@given(corpora())
def test_no_two_kept_are_duplicates_and_every_dropped_one_has_a_kept_one(
    made: tuple[pl.DataFrame, Pairs, dict[tuple[int, int], float]],
) -> None:
    """Against the definition: best first, a row that pairs with a kept one is dropped, whatever became of the first."""
    signals, pairs, jaccard = made
    plan: list[rules.Rule] = [Drop("bad", "bad"), KeepBest("copy", "kind", 0.75)]
    found = decide(signals, {"kind": pairs}, plan, ["size DESC"])
    rows = list(signals.with_row_index("row").iter_rows(named=True))
    best_first = sorted(rows, key=lambda r: (r["size"] is None, -(r["size"] or 0), r["id"]))
    kept: list[int] = []
    nearest: dict[int, float] = {}
    for row in best_first:
        if row["bad"] is True:
            continue
        nearest[row["row"]] = max((jaccard[row["row"], k] for k in kept), default=0.0)
        if nearest[row["row"]] < 0.75:
            kept.append(row["row"])
    assert {i for i, keep in enumerate(found["keep"]) if keep} == set(kept)
    for i, (reason, of, near) in enumerate(found.select("reason", "duplicate_of", "jaccard").rows()):
        if reason == "copy":
            other = int(of[2:])
            assert other in kept
            assert near == pytest.approx(jaccard[i, other])
            assert near == pytest.approx(nearest[i])


def test_two_kinds_of_duplicates_hold_together() -> None:
    """A row dropped for one kind does not stand as the kept one of another kind."""
    signals = pl.DataFrame({"id": ["a", "b", "c"], "size": [3, 2, 1]})
    none = pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32})
    first = Pairs(pl.Series(["a", "a", "c"]), none)
    second = Pairs(pl.Series(["a", "b", "b"]), none)
    plan = [KeepBest("text", "one", 0.8), KeepBest("prompt", "two", 0.8)]
    found = decide(signals, {"one": first, "two": second}, plan, ["size DESC"])
    assert found.select("keep", "reason", "duplicate_of").rows() == [
        (True, None, None),
        (False, "text", "a"),
        (True, None, None),
    ]
    assert found.select("text", "prompt").rows() == [(False, False), (True, False), (False, False)]


EDGE = [0.7, 0.75, 0.9, 1.0]


@pytest.mark.parametrize("at_least", EDGE)
@pytest.mark.parametrize(("step", "kept"), [(0, ["a"]), (-1, ["a", "b"])])
def test_a_pair_exactly_at_the_threshold_is_a_duplicate(at_least: float, step: int, kept: list[str]) -> None:
    """At or above `at_least`; the next smaller Jaccard that Float32 can hold is below it."""
    jaccard = np.float32(at_least) if not step else np.nextafter(np.float32(at_least), np.float32(0))
    near = pl.DataFrame({"id": ["a"], "other": ["b"], "jaccard": pl.Series([jaccard], dtype=pl.Float32)})
    pairs = {"k": Pairs(pl.Series(["a", "b"]), near)}
    found = decide(pl.DataFrame({"id": ["a", "b"]}), pairs, [KeepBest("copy", "k", at_least)])
    assert found.filter("keep")["id"].to_list() == kept


def test_of_equally_near_kept_ones_the_first_is_named() -> None:
    """`duplicate_of` is the nearest kept one, and the first of the corpus among several; the order says who is kept."""
    signals = pl.DataFrame({"id": ["a", "b", "c", "d"], "size": [1, 2, 3, 0]})
    near = pl.DataFrame({"id": ["a", "b", "c"], "other": ["d", "d", "d"], "jaccard": [0.8, 0.9, 0.9]})
    near = near.cast({"jaccard": pl.Float32})
    for frame in (near, near.reverse()):
        pairs = {"k": Pairs(signals["id"], frame)}
        found = decide(signals, pairs, [KeepBest("copy", "k", 0.8)], ["size DESC"])
        assert found.select("id", "duplicate_of").rows() == [("a", None), ("b", None), ("c", None), ("d", "b")]


def test_order_prefers_the_largest_the_known_and_then_the_first() -> None:
    """DESC and ASC, unknown last either way, ties by id."""
    signals = pl.DataFrame({"id": ["a", "b", "c", "d"], "size": [None, 2, 2, 1]})
    none = pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32})
    pairs = {"k": Pairs(pl.Series(["a"] * 4), none)}
    for order, best in ((["size DESC"], "b"), (["size desc"], "b"), (["size"], "d"), (["size ASC"], "d"), ([], "a")):
        found = decide(signals, pairs, [KeepBest("copy", "k", 0.8)], order)
        assert found.filter("keep")["id"].to_list() == [best]
        assert set(found["duplicate_of"].drop_nulls()) == {best}


def test_many_copies_are_decided_in_time_linear_in_them() -> None:
    """200,000 copies of one text are one walk, not 2e10 comparisons (the suite's time limit holds this)."""
    n = 200_000
    ids = pl.Series("id", range(n)).cast(pl.String)
    none = pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32})
    found = decide(pl.DataFrame({"id": ids}), {"k": Pairs(pl.Series(["0"] * n), none)}, [KeepBest("copy", "k", 0.7)])
    assert found["keep"].sum() == 1


SCHEMA = pl.Schema({"x": pl.Int64(), "name": pl.String()})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Drop("r", "ppl > 3"), "no stage writes the column 'ppl'; there are x, name"),
        (Drop("r", "x + 1"), "is Int64, expected a condition"),
        (Drop("r", "x >"), "is not SQL"),
        (Drop("r", "name > 3 AND x"), "cannot be applied|is not SQL|expected a condition"),
        (KeepBest("r", "faces", 0.5), "no stage finds pairs 'faces'; there are dedup"),
        (KeepBest("r", "dedup", 0.0), "at_least is 0.0, expected a Jaccard"),
        (KeepBest("r", "dedup", -0.1), "at_least is -0.1, expected a Jaccard"),
        (KeepBest("r", "dedup", 1.01), "at_least is 1.01, expected a Jaccard"),
        (KeepBest("r", "dedup", float("nan")), "at_least is nan, expected a Jaccard"),
        (Drop("r", "1 = 1"), "reads no signal"),
        (Drop("r", "COUNT(*) > 3"), "reads no signal"),
        (Drop("r", "x > AVG(x)"), "looks at all conversations at once"),
        (Drop("r", "SUM(x) OVER (PARTITION BY name) > 3"), "looks at all conversations at once"),
        (Drop("r", "x > COUNT(*)"), "looks at all conversations at once"),
        (Drop("r", "x > QUANTILE_CONT(x, 0.9)"), "looks at all conversations at once"),
        (Drop("r", "x > CORR(x, x)"), "looks at all conversations at once"),
        (Drop("", "x > 3"), "a rule's reason is ''"),
        (Drop("a\nb", "x > 3"), "a rule's reason is "),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused_before_any_work(rule: rules.Rule, said: str) -> None:
    """The sentence names the rule, what was found, and what there is."""
    with pytest.raises(RuleError, match=said):
        rules.check([rule], [], SCHEMA, ["dedup"])


def test_a_text_may_be_the_name_of_an_aggregate() -> None:
    """A condition is judged by its functions, not by the texts and columns in it."""
    rules.check([Drop("r", "name IN ('Agg', 'Len \\\" Over')")], [], SCHEMA, [])
    rules.check([Drop("r", '"Len" > 3')], [], pl.Schema({"Len": pl.Int64()}), [])


@pytest.mark.parametrize(
    ("n", "sentence"), [(20, "there are c0, c1"), (21, "did you mean c20.*`refine stages` lists all 21")]
)
def test_a_missing_column_is_answered_with_all_or_with_similar_ones(n: int, sentence: str) -> None:
    """Up to 20 columns are listed in full."""
    with pytest.raises(RuleError, match=sentence):
        rules.check([Drop("r", "c200 > 3")], [], pl.Schema({f"c{i}": pl.Int64() for i in range(n)}), [])


def test_pairs_of_another_corpus_are_refused() -> None:
    """A first copy that is no conversation of the run."""
    none = pl.DataFrame(schema={"id": pl.String, "other": pl.String, "jaccard": pl.Float32})
    with pytest.raises(RuleError, match="name conversations that are not in the run"):
        decide(SIGNALS, {"k": Pairs(pl.Series(["a", "b", "z"]), none)}, [KeepBest("copy", "k", 0.8)])


def test_reasons_and_orders_are_checked() -> None:
    """A reason is given once; the order names columns there are."""
    rules.check([KeepBest("r", "dedup", 1.0)], ["x", "name desc", "x ASC"], SCHEMA, ["dedup"])
    with pytest.raises(RuleError, match="two rules give the reason 'r'"):
        rules.check([Drop("r", "x > 1"), Drop("r", "x > 2")], [], SCHEMA, [])
    with pytest.raises(RuleError, match="no stage writes the column 'size'"):
        rules.check([], ["size DESC"], SCHEMA, [])
    with pytest.raises(RuleError, match="should be a column"):
        rules.check([], ["x downwards"], SCHEMA, [])


@pytest.mark.parametrize("reason", ["^.*$", "*", "row", "id2", "it's"])
def test_a_reason_is_a_name_and_never_a_pattern(reason: str) -> None:
    """Polars reads "*" and "^...$" as patterns of columns."""
    signals = pl.DataFrame({"id": ["a", "b"], "row": [1, 5]})
    found = decide(signals, {}, [Drop(reason, "row > 3")], ["row DESC"])
    assert found["reason"].to_list() == [None, reason]
    assert found[:, 5].to_list() == [False, True]


def test_an_error_of_a_condition_is_one_line() -> None:
    """What only data brings out names the rule too."""
    signals = pl.DataFrame({"id": ["a"], "name": ["x"]})
    with pytest.raises(RuleError, match=r"rule 'r': .* cannot be applied") as found:
        decide(signals, {}, [Drop("r", "CAST(name AS INT) > 3")])
    assert "\n" not in str(found.value)
