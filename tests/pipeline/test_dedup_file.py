"""`refine dedup` keeps what the slow keep rule keeps, from any kind of file, and names a reason for the rest."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dedup.texts import Columns, TextColumn, Texts
from pipeline.experiments.corpus import read
from pipeline.rules import KeepBest, Pairs, decide
from pipeline.sources import SourceError
from stages.dedup.bands import Matching
from stages.dedup.keep import GIVEN, Selection, keep_best
from stages.text import shingles
from tests.conftest import Refine
from tests.stages.dedup_reference import greedy, jaccard, run
from tests.stages.dedup_reference import shingles as slow_shingles
from tests.stages.test_dedup import corpus


def decided(  # noqa: PLR0917
    texts: list[str],
    threshold: float = 0.7,
    rank: list[int] | None = None,
    part: int = 7,
    workers: int = 1,
    bucket: int = 1024,
) -> Selection:
    """Texts in parts of a few; the longest are the best unless there is a rank."""
    parts = [pl.Series(texts[at : at + part], dtype=pl.String) for at in range(0, len(texts), part)]
    with TemporaryDirectory() as folder:
        matching = Matching.for_threshold(threshold, bucket)

        def ranks(words: np.ndarray) -> np.ndarray:
            return -words.astype(np.int64) if rank is None else np.array(rank, np.int64)

        return keep_best(parts, threshold, matching, ranks, Path(folder), workers)


def keys(texts: list[str], threshold: float) -> list[list[int]]:
    """Band keys of each text."""
    matching = Matching.for_threshold(threshold)
    parts = shingles.split(pl.Series(texts, dtype=pl.String))
    return [row for part in parts for row in matching.keys(part).tolist()]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(0, 60),
    st.sampled_from([0.5, 0.7, 0.9]),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_what_is_kept_is_what_the_slow_rule_keeps(
    seed: int, size: int, threshold: float, ranked: bool, workers: int
) -> None:
    """Kept rows, the one that stands for each removed one, and its exact Jaccard, however the file is cut."""
    draw, texts = random.Random(seed), corpus(seed, size)
    rank = [draw.randrange(5) for _ in texts] if ranked else None
    found = decided(texts, threshold, rank, draw.randrange(1, 20), workers)
    bands = keys(texts, threshold)
    slow = greedy(
        texts,
        threshold,
        list(rank) if rank is not None else [-len(words) for words in map(_words, texts)],
        lambda i, j: any(a == b for a, b in zip(bands[i], bands[j], strict=True)),
    )
    assert found.of.tolist() == [other for other, _ in slow]
    assert found.jaccard.tolist() == pytest.approx([value for _, value in slow], abs=1e-6)


def _words(text: str) -> list[str]:
    from tests.stages.dedup_reference import words

    return words(text)


def test_a_run_keeps_the_same(tmp_path: Path) -> None:
    """The stage's pairs with the rule `KeepBest` and `refine dedup` agree, copies and clusters included."""
    texts = corpus(5, 400)
    stage = run(tmp_path / "1", texts)
    signals = stage.merged.select("id").hstack(stage.measured.select("dedup_words"))
    pairs = {"dedup": Pairs(stage.merged["dedup_copy_of"], stage.near)}
    rules = decide(signals, pairs, [KeepBest("duplicate", "dedup", 0.7)], ["dedup_words DESC"])
    assert rules["keep"].to_list() == decided(texts).mask().tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 60))
def test_what_is_given_stays_and_stands_for_others(seed: int, size: int) -> None:
    """All texts of an earlier corpus are kept, duplicates too; new texts near one of them are removed."""
    texts = corpus(seed, size)
    given = random.Random(seed).randrange(size + 1)
    rank = [GIVEN] * given + [-len(_words(text)) for text in texts[given:]]
    found = decided(texts, 0.6, rank)
    bands = keys(texts, 0.6)
    alike = {
        (i, j): any(a == b for a, b in zip(bands[i], bands[j], strict=True))
        and jaccard(slow_shingles(texts[i]), slow_shingles(texts[j])) >= 0.6
        for i in range(size)
        for j in range(size)
    }
    kept = list(range(given))
    for row in sorted(range(given, size), key=lambda row: (rank[row], row)):
        if not any(alike[row, other] for other in kept):
            kept.append(row)
    assert np.flatnonzero(found.mask()).tolist() == sorted(kept)
    for row in np.flatnonzero(~found.mask()).tolist():
        assert row >= given
        value = jaccard(slow_shingles(texts[row]), slow_shingles(texts[found.of[row]]))
        assert found.mask()[found.of[row]]
        assert found.jaccard[row] == pytest.approx(value, abs=1e-6)
        assert value >= 0.6


def test_against_an_earlier_corpus(refine: Refine, frame: pl.DataFrame, tmp_path: Path) -> None:
    """Only rows of the new file are written; a removed one names what it repeats by the id that has in its corpus."""
    written(frame[:150].rename({"name": "id"}), tmp_path / "old.parquet")
    written(frame[150:], tmp_path / "new.jsonl")
    words = ["dedup", "new.jsonl", "--against", "old.parquet", "--column", "body", "--id", "name", "--removed"]
    done = refine(*words, "r.parquet", "--kept", "kept.txt", "--order", "score DESC", "--json")
    assert done.returncode == 0, done.stderr
    assert refine(*words, "r.parquet", "--kept", "kept.parquet", "--order", "score DESC").returncode == 0
    rank = [GIVEN] * 150 + _rank(frame["score"][150:].to_list())
    found = decided(frame["body"].to_list(), rank=rank)
    mask, names = found.mask(), frame["name"]
    assert (tmp_path / "kept.txt").read_text().split() == names[150:].filter(pl.Series(mask[150:])).to_list()
    assert pl.read_parquet(tmp_path / "kept.parquet").equals(frame[150:].filter(pl.Series(mask[150:])))
    removed = pl.read_parquet(tmp_path / "r.parquet")
    assert removed["id"].to_list() == names.filter(pl.Series(~mask)).to_list()
    assert removed["duplicate_of"].to_list() == names.gather(found.of[~mask]).to_list()
    assert removed["duplicate_of"].is_in(names[:150].implode()).sum() > 10
    assert json.loads(done.stdout)["texts"] == 150


def test_exactly_the_threshold_is_a_duplicate() -> None:
    """At or above, not above: 30 of 40 shingles go at 0.75, and stay one step beyond; the rule of a run agrees."""
    words = [f"w{i}" for i in range(44)]
    texts = [" ".join(words), " ".join(words[:34])]
    assert decided(texts, 0.75).of.tolist() == [0, 0]
    assert decided(texts, np.nextafter(0.75, 1)).of.tolist() == [0, 1]
    near = pl.DataFrame({"id": ["a"], "other": ["b"], "jaccard": pl.Series([0.75], dtype=pl.Float32)})
    pairs = {"dedup": Pairs(pl.Series(["a", "b"]), near)}
    signals = pl.DataFrame({"id": ["a", "b"]})
    for at_least, keep in ((0.75, [True, False]), (0.7500001, [True, True])):
        assert decide(signals, pairs, [KeepBest("duplicate", "dedup", at_least)])["keep"].to_list() == keep


@pytest.mark.parametrize("rank", [[0, 1, 2], [1, 0, 2]])
def test_of_equally_similar_kept_texts_the_first_stands_for_a_duplicate(rank: list[int]) -> None:
    """The first row, whichever of the two was kept first; the rule of a run agrees."""
    words = [f"w{i}" for i in range(100)]
    tails = [[f"{name}{i}" for i in range(32)] for name in "xy"]
    texts = [" ".join([*words, *tail]) for tail in tails] + [" ".join(words)]  # 0.75 to the third, 0.6 to each other
    found = decided(texts, 0.7, rank, bucket=2)
    assert found.crowded == 0  # a bucket of exactly the bound is no crowd
    assert decided(texts, 0.7, rank, bucket=1).crowded == 1
    assert found.of.tolist() == [0, 1, 0]
    assert found.jaccard.tolist() == [0, 0, 0.75]
    ids = pl.Series("id", ["a", "b", "c"])
    near = pl.DataFrame({"id": ["a", "b"], "other": "c", "jaccard": pl.Series([0.75, 0.75], dtype=pl.Float32)})
    signals = pl.DataFrame({"id": ids, "rank": rank})
    rules = decide(signals, {"dedup": Pairs(ids, near)}, [KeepBest("duplicate", "dedup", 0.7)], ["rank ASC"])
    assert rules["duplicate_of"].to_list() == [None, None, "a"]


def test_a_crowd_leaves_one() -> None:
    """Of 3,000 texts that are all near-duplicates of each other one is kept, whatever the order they come in."""
    draw, template = random.Random(1), [str(i) for i in range(300)]
    texts = []
    for _ in range(3000):
        text = list(template)
        for _ in range(3):
            text[draw.randrange(300)] = f"x{draw.randrange(10_000)}"
        texts.append(" ".join(text))
    found = decided(texts, part=500, workers=2)
    assert found.mask().sum() == 1
    assert found.compared == 2999
    assert found.jaccard[1:].min() >= 0.7


def test_a_bound_on_comparisons_is_reported() -> None:
    """Texts of one template, no duplicates: with a bound, a text is compared with the best only, and is counted."""
    draw, texts = random.Random(2), []
    for _ in range(400):
        text = [str(i) for i in range(200)]
        for at in draw.sample(range(200), 8):
            text[at] = f"x{draw.randrange(10**7)}"
        texts.append(" ".join(text))
    free, bound = decided(texts), decided(texts, bucket=5)
    assert free.crowded == 0
    assert bound.crowded > 300
    assert bound.compared < 400 * 25 * 5 < free.compared * 2
    assert set(np.flatnonzero(free.mask())) <= set(np.flatnonzero(bound.mask()))


def test_parts_and_threads_change_nothing() -> None:
    """1 MB texts, empty ones, odd characters: one part or many, one thread or three."""
    texts = [*corpus(9, 80), "", "x " * 500_000, "中" * 300_000, "\0", " ", "Σ İ", "x " * 500_000]
    whole = decided(texts, 0.6, part=1000)
    for part, workers in ((1, 1), (3, 3)):
        other = decided(texts, 0.6, part=part, workers=workers)
        assert other.of.tolist() == whole.of.tolist()
        assert other.jaccard.tolist() == whole.jaccard.tolist()


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """A corpus with ids and a score."""
    texts = corpus(11, 300)
    names = [f"n{row}" for row in range(len(texts))]
    return pl.DataFrame({"name": names, "body": texts, "score": [row * 7 % 31 for row in range(len(texts))]})


def written(frame: pl.DataFrame, path: Path) -> Path:
    """A corpus as a file of the kind that its name says."""
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=70)
    elif path.suffix in {".arrow", ".feather"}:
        frame.write_ipc(path)
    else:
        data = frame.write_csv().encode() if ".csv" in path.name else frame.write_ndjson().encode()
        packed = {".gz": gzip.compress(data), ".zst": zstandard.compress(data)}
        path.write_bytes(packed.get(path.suffix, data))
    return path


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
def test_every_kind_of_file_gives_the_same(refine: Refine, frame: pl.DataFrame, tmp_path: Path, name: str) -> None:
    """Kept ids, kept rows with all their columns, and removed ids with the one kept for each, are those of the rule."""
    file = written(frame, tmp_path / name)
    words = ["dedup", file, "--column", "body", "--id", "name", "--order", "score DESC", "--removed", "r.parquet"]
    done = refine(*words, "--kept", "kept.txt", "--json")
    assert done.returncode == 0, done.stderr
    assert refine(*words, "--kept", "kept.parquet").returncode == 0
    found = decided(frame["body"].to_list(), rank=_rank(frame["score"].to_list()))
    kept = frame.filter(pl.Series(found.mask()))
    assert (tmp_path / "kept.txt").read_text().splitlines() == kept["name"].to_list()
    assert pl.read_parquet(tmp_path / "kept.parquet").equals(kept)
    removed = pl.read_parquet(tmp_path / "r.parquet")
    assert removed["id"].to_list() == frame["name"].filter(pl.Series(~found.mask())).to_list()
    assert removed["duplicate_of"].to_list() == frame["name"].gather(found.of[~found.mask()]).to_list()
    assert removed["jaccard"].to_list() == found.jaccard[~found.mask()].tolist()
    output = json.loads(done.stdout)
    assert (output["texts"], output["kept"], output["removed"]) == (300, len(kept), len(removed))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".tmp"]


def _rank(scores: list[int]) -> list[int]:
    best_first = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [best_first.index(row) for row in range(len(scores))]


def test_without_ids_rows_are_numbered(refine: Refine, tmp_path: Path) -> None:
    """Row numbers from 0; a text that is null counts as empty."""
    written(pl.DataFrame({"text": ["a b c d e f", None, "A b, c d e f!", ""]}), tmp_path / "c.parquet")
    done = refine("dedup", "c.parquet", "--kept", "kept.txt", "--removed", "r.parquet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").read_text() == "0\n1\n"
    assert pl.read_parquet(tmp_path / "r.parquet").rows() == [("2", "0", 1.0), ("3", "1", 1.0)]


TEXTS = ["a b c d e f", "A b, c d e f!", "g", "h"]


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        (["x", None, "y", None], "is empty in rows 1, 3 (counted from 0)"),
        (["", "x", "y", "z"], "is empty in row 0 (counted from 0)"),
        ([7, 8, 9, 7], "repeats an earlier id in row 3 (counted from 0)"),
        (["x", "x", "x", "y"], "repeats an earlier id in rows 1, 2 (counted from 0)"),
    ],
)
@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_ids_that_do_not_name_every_row_are_not_used(
    refine: Refine, tmp_path: Path, ids: list[Any], fault: str, name: str
) -> None:
    """Rows are numbered instead, and the summary says why; a column that --id names is refused."""
    written(pl.DataFrame({"id": ids, "text": TEXTS}), tmp_path / name)
    done = refine("dedup", name, "--kept", "kept.txt", "--removed", "r.parquet")
    assert done.returncode == 0, done.stderr
    assert f"the column 'id' of {name} {fault}: its rows are numbered from 0 instead" in done.stdout
    assert (tmp_path / "kept.txt").read_text() == "0\n2\n3\n"
    assert pl.read_parquet(tmp_path / "r.parquet").rows() == [("1", "0", 1.0)]
    done = refine("dedup", name, "--id", "id", "--kept", "named.txt")
    assert done.returncode == 1
    assert f"{name}: the column 'id' {fault}: name another one with --id, or omit it" in done.stderr
    assert not (tmp_path / "named.txt").exists()
    assert refine("dedup", name, "--id", "id", "--kept", "rows.jsonl").returncode == 0  # whole rows need no ids


@pytest.mark.parametrize(("rows", "said"), [(3, "rows 0, 1, 2 ("), (1004, "rows 0, 1, 2 and 1,001 more (")])
def test_of_many_rows_without_an_id_three_are_named(refine: Refine, tmp_path: Path, rows: int, said: str) -> None:
    """And the others counted."""
    written(pl.DataFrame({"id": [""] * rows, "text": map(str, range(rows))}), tmp_path / "c.parquet")
    assert f"is empty in {said}" in refine("dedup", "c.parquet", "--kept", "kept.txt").stdout


@pytest.mark.parametrize("ids", [[2**53 + 1, 2**53 + 2, 2**53, 0], ["1", "01", "1.0", " 1"], [None] * 4])
def test_kept_ids_find_their_rows(refine: Refine, tmp_path: Path, ids: list[Any]) -> None:
    """Joined back, they are the kept rows, also where ids nearly repeat, or where there are none."""
    frame = pl.DataFrame({"id": ids, "text": TEXTS}).with_row_index("row")
    written(frame, tmp_path / "c.parquet")
    assert refine("dedup", "c.parquet", "--order", "first", "--kept", "kept.txt").returncode == 0
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    column = "row" if ids[0] is None else "id"
    assert frame.filter(pl.col(column).cast(pl.String).is_in(kept))["text"].to_list() == ["a b c d e f", "g", "h"]


def test_faulty_ids_of_an_earlier_corpus_are_row_numbers(refine: Refine, tmp_path: Path) -> None:
    """Each corpus has ids of its own, and what is removed says which one it repeats; --id is that of the file."""
    written(pl.DataFrame({"id": ["x", "x"], "text": ["none", TEXTS[0]]}), tmp_path / "old.jsonl")
    written(pl.DataFrame({"key": list("abcd1"), "text": [*TEXTS, "g"]}), tmp_path / "new.jsonl")
    done = refine("dedup", "new.jsonl", "--against", "old.jsonl", "--id", "key", "--removed", "r.parquet")
    assert "the column 'id' of old.jsonl repeats an earlier id in row 1" in done.stdout
    removed = [("a", "1", 1.0, True), ("b", "1", 1.0, True), ("1", "c", 1.0, False)]
    assert pl.read_parquet(tmp_path / "r.parquet").rows() == removed


def test_empty_shards_hold_no_rows(refine: Refine, tmp_path: Path) -> None:
    """Wherever they stand, in any format; a corpus of them alone is refused, as a run refuses it."""
    pl.DataFrame(schema={"text": pl.String}).write_parquet(tmp_path / "none.parquet")
    done = refine("dedup", "none.parquet", "--kept", "none.jsonl")
    assert (done.returncode, done.stderr) == (1, "refine: none.parquet holds no rows: nothing to compare\n")
    (tmp_path / "in").mkdir()
    for name in ("a.jsonl", "c.json"):
        (tmp_path / "in" / name).write_text("" if name == "a.jsonl" else "[]")
    assert "in holds no rows: nothing to compare" in refine("dedup", "in", "--kept", "none.txt").stderr
    (tmp_path / "in" / "f.csv").write_text("")
    pl.DataFrame(schema={"text": pl.Null, "n": pl.Null}).write_parquet(tmp_path / "in" / "b.parquet")
    pl.DataFrame(schema={"other": pl.Int8}).write_ipc(tmp_path / "in" / "g.arrow")
    written(pl.DataFrame({"text": TEXTS, "n": range(4)}), tmp_path / "in" / "d.jsonl")
    (tmp_path / "in" / "e.jsonl").write_text("\n\n")
    done = refine("dedup", "in", "--kept", "kept.parquet")
    assert "4 texts: 3 kept, 1 removed" in done.stdout, done.stderr
    assert pl.read_parquet(tmp_path / "kept.parquet")["text"].to_list() == ["a b c d e f", "g", "h"]


@pytest.mark.parametrize("name", ["c.csv", "c.csv.gz", "c.arrow", "c.feather"])
def test_tables_are_deduplicated(refine: Refine, tmp_path: Path, name: str) -> None:
    """Kept rows have all their columns; those of text tables are text."""
    frame = pl.DataFrame({"n": range(4), "text": TEXTS})
    written(frame, tmp_path / name)
    kept = (frame.cast(pl.String) if ".csv" in name else frame)[[0, 2, 3]]
    for out, read_back in (("k.parquet", pl.read_parquet), ("k.jsonl", pl.read_ndjson)):
        done = refine("dedup", name, "--kept", out)
        assert done.returncode == 0, done.stderr
        assert read_back(tmp_path / out).equals(kept)


def test_a_folder_is_one_corpus(frame: pl.DataFrame, tmp_path: Path) -> None:
    """Files of a folder are one corpus in order of name; bytes that are not UTF-8 are replaced."""
    written(frame[:100], tmp_path / "a.parquet")
    written(frame[100:], tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_bytes(b'\n{"body": "bad \xff"}\n\n{"name": "x"}\n')
    columns = Columns.of(tmp_path)
    texts = Texts([TextColumn.of(columns, "body")])
    for _ in range(2):
        assert pl.concat([*texts]).to_list() == [*frame["body"], "bad \ufffd", ""]
    assert len(pl.concat([*columns.parts(pl.Schema({"name": pl.String()}))])) == 302


def test_kept_rows_are_json_lines_as_they_came(refine: Refine, tmp_path: Path) -> None:
    """Each kept line byte for byte, without the blank ones and the byte order mark; Parquet rows become objects."""
    lines = [b'{"text":"a b c d e f",  "n": 1.50}', b'{"n": 2, "text": "A b c d e f!"}', b'{"text": "bad \xff"}']
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join(lines))
    (tmp_path / "in" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "last"}'))
    pl.DataFrame({"text": ["one", "last"], "tags": [["x"], []]}).write_parquet(tmp_path / "in" / "e.parquet")
    assert refine("dedup", "in", "--order", "first", "--kept", "kept.jsonl").returncode == 0
    kept = (tmp_path / "kept.jsonl").read_bytes().splitlines()
    assert kept[:-1] == [lines[0], lines[2], b'{"text": "last"}']
    assert json.loads(kept[-1]) == {"text": "one", "tags": ["x"]}


CONVERSATIONS = [
    [{"role": "user", "content": "Tell me of\nthe river"}, {"role": "assistant", "content": "It runs under a bridge."}],
    [{"role": "user", "content": "tell me of the river it"}, {"role": "assistant", "content": "runs under a bridge"}],
    [{"role": "user", "content": "Call a tool"}, {"role": "assistant", "content": None}],
    [],
    [{"role": "user", "content": "call"}, {"role": "assistant", "content": "a tool"}],
]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
@pytest.mark.parametrize("words", [[], ["--column", "messages"]])
def test_conversations_are_compared_by_their_text(refine: Refine, tmp_path: Path, name: str, words: list[str]) -> None:
    """As ingest makes it; `messages` is the column if there is no `text`."""
    if name == "c.parquet":
        pl.DataFrame({"messages": CONVERSATIONS, "prompt_id": list("abcde")}).write_parquet(tmp_path / name)
    else:
        records = [{"messages": said, "prompt_id": i} for i, said in enumerate(CONVERSATIONS)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    texts = read(str(tmp_path / name)).frame["text"]
    column = TextColumn.of(Columns.of(tmp_path / name), "messages")
    assert pl.concat(column.parts()).to_list() == texts.to_list()
    done = refine("dedup", name, *words, "--kept", "kept.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").read_text().split() == ["0", "2", "3"]


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet"])
def test_messages_as_json_text_are_compared_by_their_text(refine: Refine, tmp_path: Path, name: str) -> None:
    """The names of fields and roles are no words of a conversation."""
    said = [json.dumps(messages) for messages in CONVERSATIONS]
    written(pl.DataFrame({"messages": said}), tmp_path / name)
    column = TextColumn.of(Columns.of(tmp_path / name), "text")
    assert pl.concat(column.parts()).to_list()[1] == "tell me of the river it\nruns under a bridge"
    assert refine("dedup", name, "--kept", "kept.txt").returncode == 0
    assert (tmp_path / "kept.txt").read_text().split() == ["0", "2", "3"]
    written(pl.DataFrame({"messages": [*said, "no JSON"]}), tmp_path / name)
    done = refine("dedup", name, "--json")
    assert f"{name}: the column 'messages' begins with messages as JSON text and ends otherwise (" in done.stderr


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.csv"])
def test_texts_of_messages_may_be_values(refine: Refine, tmp_path: Path, name: str) -> None:
    """As ShareGPT has them: conversations that differ in them are no copies."""
    words = ["one two three four five six", "seven eight nine ten eleven twelve"]
    said = [[{"from": "human", "value": word}] for word in (*words, words[0])]
    held = [json.dumps(one) for one in said] if name == "c.csv" else said
    written(pl.DataFrame({"conversations": held}), tmp_path / name)
    done = refine("dedup", name, "--column", "conversations", "--kept", "kept.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").read_text().split() == ["0", "1"]


def test_messages_without_texts_are_refused(refine: Refine, tmp_path: Path) -> None:
    """All conversations would seem to be copies of one that says nothing."""
    rows = [{"messages": [{"human": word, "assistant": "yes"}]} for word in ("one", "two")]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = refine("dedup", "c.jsonl", "--kept", "kept.txt")
    assert "no message of the column 'messages' has content or value: name another column, or take" in done.stderr
    assert not (tmp_path / "kept.txt").exists()


def test_contents_that_are_no_text_are_refused(refine: Refine, tmp_path: Path) -> None:
    """Content in parts is for `refine run`; a list of strings is no conversation."""
    for value in ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], ["a", "b"]):
        written(pl.DataFrame({"messages": [value]}), tmp_path / "c.parquet")
        (tmp_path / "c.jsonl").write_text(json.dumps({"messages": value}))
        for name in ("c.parquet", "c.jsonl"):
            done = refine("dedup", name, "--json")
            assert done.returncode == 1
            assert "expected text, or a list of messages with role and content (text)" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["c.parquet", "--column", "txt"],
            "c.parquet has no column 'txt': name one with --column (there are name, body, ",
        ),
        (["c.parquet", "--column", "score"], "the column 'score' is Int64, expected text"),
        (["c.parquet", "--column", "body", "--id", "key"], "has no column 'key': name one with --id"),
        (["c.parquet", "--column", "body", "--order", "size DESC"], "no column 'size' to order by"),
        (["c.parquet", "--column", "body", "--order", ""], "no column '' to order by"),
        (["words.jsonl", "--order", "size"], "words.jsonl: the column 'size' to order by holds more than numbers"),
        (["wide.jsonl"], "wide.jsonl has no column 'text': name one with --column (there are c0, c1, c2, c3, c4, c5, "),
        (["none.parquet"], "none.parquet: expected an existing file or folder, ending in .parquet"),
        (["c.parquet", "--threshold", "1.5"], "--threshold is 1.5, expected a Jaccard above 0"),
        (["c.parquet", "--kept", "no/where.txt"], "no is not a folder"),
        (["c.parquet", "--kept", "c.parquet"], "c.parquet is the file that is read"),
        (["c.parquet", "--removed", "r.csv"], "--removed is r.csv, expected a file that ends in .parquet"),
        (["c.parquet", "--kept", "k.csv"], "--kept is k.csv, expected a file that ends in .parquet or .jsonl"),
        (["bytes.parquet", "--kept", "k.jsonl"], "bytes.parquet has a column of bytes, which JSON cannot hold"),
        (["bad.parquet"], "bad.parquet is cut short"),
        (["bad.jsonl"], "bad.jsonl is not JSON on line 2"),
        (["cut.jsonl.gz"], "cut.jsonl.gz cannot be read"),
    ],
)
def test_a_users_error_is_one_sentence(
    refine: Refine, frame: pl.DataFrame, tmp_path: Path, words: list[str], said: str
) -> None:
    """It names the fault and the choices; no file is left behind."""
    written(frame, tmp_path / "c.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    pl.DataFrame({"text": ["a"], "raw": [b"b"]}).write_parquet(tmp_path / "bytes.parquet")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    (tmp_path / "words.jsonl").write_text('{"text": "a", "size": 1}\n{"text": "b", "size": "large"}\n')
    (tmp_path / "wide.jsonl").write_text(json.dumps({f"c{i}": i for i in range(1000)}))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    before = sorted(tmp_path.iterdir())
    done = refine("dedup", *words, *([] if "--kept" in words else ["--json"]))
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert len(done.stderr) < 400
    assert sorted(tmp_path.iterdir()) == before


def test_without_an_output_nothing_is_done(refine: Refine, tmp_path: Path) -> None:
    """One sentence names the options, before any work; with --json or --explain the figures are the output."""
    (tmp_path / "bad.jsonl").write_bytes(b"no JSON")
    done = refine("dedup", "bad.jsonl")
    assert done.returncode == 1
    assert "nothing would be written: name a file with --kept or --removed" in done.stderr
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n' * 2)
    assert "1 kept, 1 removed" in refine("dedup", "c.jsonl", "--explain").stdout
    assert json.loads(refine("dedup", "c.jsonl", "--json").stdout)["removed"] == 1


def test_a_monster_cluster_stops_it_unless_allowed(refine: Refine, tmp_path: Path) -> None:
    """The error gives its size, an example and the option that allows it; corpus text cannot act on the terminal."""
    same = ["\x1b[31mall the same words again and again"] * 1200
    other = [" ".join(f"{row}w{i}" for i in range(8)) for row in range(3000)]
    written(pl.DataFrame({"text": same + other}), tmp_path / "c.parquet")
    done = refine("dedup", "c.parquet", "--kept", "kept.txt")
    assert done.returncode == 1
    assert "1,200 of 4,200 texts are duplicates of one, '0'" in done.stderr
    assert "\x1b" not in done.stderr
    assert not (tmp_path / "kept.txt").exists()
    allowed = done.stderr.split("--max-cluster ")[1].strip()
    assert refine("dedup", "c.parquet", "--kept", "kept.txt", "--max-cluster", allowed).returncode == 0
    assert len((tmp_path / "kept.txt").read_text().splitlines()) == 3001


def test_explain_shows_the_curve_and_the_recall(refine: Refine, tmp_path: Path) -> None:
    """The S-curve of the bands, the recall it predicts, and the recall measured on edited copies."""
    draw = random.Random(4)
    texts = [" ".join(draw.choice(["ab", "cd", str(draw.randrange(999))]) for _ in range(120)) for _ in range(300)]
    written(pl.DataFrame({"text": texts}), tmp_path / "c.parquet")
    done = refine("dedup", "c.parquet", "--explain", "--threshold", "0.5")
    assert done.returncode == 0, done.stderr
    output = json.loads(refine("dedup", "c.parquet", "--explain", "--threshold", "0.5", "--json").stdout)
    assert f"{output['bands']} bands of {output['rows']} rows" in done.stdout
    injected = output["injected"]
    assert injected["copies"] >= 250
    assert 0.5 <= injected["jaccard"] < 0.65
    sigma = (injected["expected"] * (1 - injected["expected"]) / injected["copies"]) ** 0.5
    assert abs(injected["recall"] - injected["expected"]) < 4 * sigma + 1e-3
    assert output["expected_recall"] > 0.98


PEAK = """
import sys, tempfile, threading
from pathlib import Path
import numpy as np
import pipeline.dedup.texts, stages.text.shingles
from pipeline.dedup.texts import Columns, TextColumn, Texts
from stages.dedup.bands import Matching
from stages.dedup.keep import keep_best

pipeline.dedup.texts.BATCH_BYTES = stages.text.shingles.PART_BYTES = 1 << 20  # batches must not count

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def go(name):
    with tempfile.TemporaryDirectory() as scratch:
        texts = Texts([TextColumn.of(Columns.of(Path(name)), "text")], most=0)
        kept = keep_best(texts, 0.7, Matching(), lambda words: -words.astype(np.int64), Path(scratch))
        return kept.mask().sum()

go(sys.argv[1])
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
thread = threading.Thread(target=watch)
thread.start()
go(sys.argv[2])
done.set()
thread.join()
print(peak[0] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Ten times the texts cost at most 200 bytes per text more; band keys and shingles are on disk."""

    def texts(rows: int) -> Iterator[str]:
        draw = np.random.default_rng(rows)
        words = draw.integers(0, 1 << 30, (rows, 12))
        words[: rows // 10, 1:] = words[rows // 2 : rows // 2 + rows // 10, 1:]
        yield from (" ".join(map(str, text)) for text in words.tolist())

    for rows in (30_000, 300_000):
        pl.DataFrame({"text": list(texts(rows))}).write_parquet(tmp_path / f"{rows}.parquet", row_group_size=20_000)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "30000.parquet"), str(tmp_path / "300000.parquet")]
    more = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert more < 200 * 270_000


@pytest.mark.parametrize("name", ["b.parquet", "b.jsonl", "b.csv", "b.arrow"])
def test_columns_that_differ_between_files_are_named(frame: pl.DataFrame, tmp_path: Path, name: str) -> None:
    """A second file without the column is an error that names it; its texts do not pass for empty ones."""
    first = "a.csv" if name == "b.csv" else "a.jsonl"
    written(frame, tmp_path / first)
    written(frame.drop("body"), tmp_path / name)
    with pytest.raises(SourceError, match=rf"{name} has no column 'body'"):
        list(Texts([TextColumn.of(Columns.of(tmp_path), "body")]))


@pytest.mark.parametrize("out", ["in/kept.jsonl", "in/sub/../kept.txt"])
def test_the_output_is_no_part_of_the_input(refine: Refine, tmp_path: Path, out: str) -> None:
    """The next time it would be read."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    written(pl.DataFrame({"text": TEXTS}), tmp_path / "in" / "c.jsonl")
    done = refine("dedup", "in", "--kept", out)
    assert done.returncode == 1
    assert f"{out} is in the folder that is read" in done.stderr


def test_jaccard_of_removed_is_exact() -> None:
    """Each removed text has the Jaccard that two Python sets have."""
    texts = corpus(21, 200)
    found = decided(texts, 0.5)
    gone = np.flatnonzero(~found.mask())
    assert len(gone) > 50
    for row in gone:
        value = jaccard(slow_shingles(texts[row]), slow_shingles(texts[found.of[row]]))
        assert found.jaccard[row] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet", "text.jsonl"])
def test_messages_that_call_tools_are_refused(refine: Refine, tmp_path: Path, name: str) -> None:
    """Three conversations that differ in the function only are no copies; an empty list of calls is no call."""
    asked = {"role": "user", "content": 'Book it. {"tool_calls": 1}', "tool_calls": []}
    for word, code in (("", 0), ("book", 1)):
        calls = [{"id": "c", "function": {"name": f"{word}{i}", "arguments": "{}"}} for i in range(3)]
        rows = [
            [asked, {"role": "assistant", "content": "", "tool_calls": [call] if word else []}, asked] for call in calls
        ]
        if name == "c.parquet":
            pl.DataFrame({"messages": rows}).write_parquet(tmp_path / name)
        else:
            held = [json.dumps(row) if name == "text.jsonl" else row for row in rows]
            (tmp_path / name).write_text("\n".join(json.dumps({"messages": row}) for row in held))
        done = refine("dedup", name, "--kept", "kept.txt")
        assert done.returncode == code, done.stderr
    assert "call tools, and `refine dedup` compares contents alone: take `refine run --stages dedup`" in done.stderr
