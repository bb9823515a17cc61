"""A corpus for the trainer: the conversations of a run, its ids, its clusters, whatever it is read from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.engine.local import Local
from pipeline.experiments.corpus import COLUMNS, groups, keys, read, read_part
from pipeline.ingest import Limits, ingest
from pipeline.plan import load
from pipeline.run import ActiveRun
from pipeline.sources import find
from pipeline.sources.rows import SourceError
from pipeline.store import RunFolderError, Store
from stages.dedup import Dedup, pairs
from stages.dedup.bands import Matching
from tests.conftest import ROOT, chat, read_shards
from tests.stages.dedup_reference import run as deduplicate
from tests.stages.test_dedup import corpus as made_texts

Jsonl = Callable[..., Path]


def conversation(*contents: str) -> dict[str, Any]:
    """A conversation of these messages."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]}


HOSTILE = [
    conversation("nul \0 inside", "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627"),
    conversation("word " * 200_000, "ok"),
    conversation(),
    conversation("", ""),
    conversation("first\nof two lines", "second"),
]


def test_ids_and_texts_are_those_of_ingest(jsonl: Jsonl, tmp_path: Path) -> None:
    """What a run over the same file has: id, contents joined by a newline, source; and the first message alone."""
    path = jsonl([chat(i) for i in range(9)] + HOSTILE)
    made = read(str(path))
    ingest(find(str(path)), Store(tmp_path / "run"), Limits())
    raw = read_shards(tmp_path / "run" / "raw")
    assert made.frame.schema == COLUMNS
    assert made.frame.select("id", "text", "source").equals(raw.select("id", "text", "source"))
    assert made.frame["first"].to_list()[-5:] == ["nul \0 inside", "word " * 200_000, "", "", "first\nof two lines"]
    assert (made.name, made.notes) == (str(path), ())


def test_the_embedded_default_needs_no_argument() -> None:
    """7,168 conversations, each with the first message's content at its beginning."""
    made = read(None)
    assert (made.name, len(made.frame)) == ("chitchat", 7168)
    begins = made.frame.select(pl.col("text").str.starts_with(pl.col("first")))
    assert begins.to_series().all()
    assert read(None, limit=10).frame.equals(made.frame.head(10))


def test_the_digest_is_of_the_texts(jsonl: Jsonl, tmp_path: Path) -> None:
    """The same from JSONL and Parquet; another for another order, another boundary, another text."""
    records = [conversation("a", "b"), conversation("c", "d")]
    plain = read(str(jsonl(records)))
    pl.DataFrame(records).write_parquet(tmp_path / "c.parquet")
    assert read(str(tmp_path / "c.parquet")).digest == plain.digest
    others = [
        records[::-1],
        [conversation("a\nb"), conversation("c", "d")],
        [conversation("a", "bc"), conversation("", "d")],
        [conversation("a", "b"), conversation("c", "e")],
    ]
    assert len({plain.digest, *(read(str(jsonl(other, "o.jsonl"))).digest for other in others)}) == 5


def test_broken_rows_are_omitted_with_a_note(jsonl: Jsonl) -> None:
    """One in 200 is a note with its place; one in ten is an error."""
    rows: list[object] = [chat(i) for i in range(199)]
    made = read(str(jsonl([*rows, b"{broken"])))
    assert len(made.frame) == 199
    assert "1 of 200 rows" in made.notes[0]
    assert "row 200" in made.notes[0]
    with pytest.raises(SourceError, match=r"1 of 10 rows .* more than 1%"):
        read(str(jsonl([*rows[:9], b"{broken"])))


def test_lone_surrogates_are_replaced_with_a_note(jsonl: Jsonl) -> None:
    """As in a run: U+FFFD, and a note."""
    made = read(str(jsonl([b'{"messages": [{"role": "user", "content": "a \\ud800 b"}]}', chat(1)])))
    assert made.frame["text"][0].strip("\ufffd ab") == ""
    assert "\ufffd" in made.frame["text"][0]
    assert "1 of 2 rows" in made.notes[0]


def test_a_corpus_without_text_is_refused(jsonl: Jsonl) -> None:
    """Empty messages and white space alone are nothing to train on."""
    with pytest.raises(SourceError, match=r"holds no text \(3 conversations, all empty\)"):
        read(str(jsonl([conversation(), conversation("", ""), conversation(" \n", "\t")])))


def test_options_without_meaning_are_refused(jsonl: Jsonl) -> None:
    """As `refine run` refuses them."""
    path = str(jsonl([chat(0)]))
    with pytest.raises(SourceError, match="omit --split"):
        read(path, split="train")
    with pytest.raises(SourceError, match="the shape is 'x'; there are ultrachat"):
        read(path, shape="x")
    with pytest.raises(SourceError, match="no such source"):
        read("./nowhere")


@pytest.fixture
def run(tmp_path: Path, jsonl: Jsonl) -> Store:
    """A complete run that drops some conversations."""
    path = jsonl([chat(i, turns=2 + i % 3) for i in range(40)] + [chat(3, turns=2)])
    store = Store(tmp_path / "a-run")
    engine = Local(1)
    ActiveRun(store, load(ROOT / "tests" / "pipeline" / "toy.toml"), engine, lambda *_: None, lambda _: None).carry_out(
        find(str(path)), Limits(rows=7)
    )
    engine.close()
    return store


def test_a_run_gives_its_parts_under_its_own_ids(run: Store) -> None:
    """The refined corpus is part of the raw one, id by id; the run's folder stands for the refined one."""
    raw, refined = read_part(run, "raw"), read_part(run, "refined")
    assert 0 < len(refined.frame) < len(raw.frame) == 41
    assert refined.frame.equals(raw.frame.filter(pl.col("id").is_in(refined.frame["id"].to_list())))
    kept = pl.read_parquet(run.decisions("*.parquet")).filter("keep")["id"]
    assert refined.frame["id"].to_list() == kept.to_list()
    whole = read(str(run.folder))
    assert whole.frame.equals(refined.frame)
    assert whole.digest == refined.digest != raw.digest
    assert read_part(run, "raw", limit=10).frame.equals(raw.frame.head(10))
    assert np.array_equal(
        keys(refined.frame["text"]),
        keys(raw.frame["text"])[np.isin(raw.frame["id"], refined.frame["id"])],
    )


def test_a_run_that_is_not_complete_is_refused(run: Store) -> None:
    """Its refined corpus would be another one when it ends."""
    run.manifest.unlink()
    with pytest.raises(RunFolderError, match="not a complete run"):
        read_part(run, "raw")
    with pytest.raises(RunFolderError, match="not a complete run"):
        read(str(run.folder))


@pytest.mark.parametrize("jaccard", [0.5, 0.75])
def test_groups_are_the_clusters_of_dedup(jaccard: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same partition as the stage's own `cluster`, whatever the size of parts."""
    texts = made_texts(11, 300)
    monkeypatch.setattr(pairs, "PART_TEXTS", 37)
    found = groups(pl.Series(texts), jaccard)
    floor = Matching.for_threshold(jaccard).floor
    wanted = deduplicate(tmp_path / "d", texts, Dedup(floor=floor, cluster=jaccard, max_cluster=1)).rows("cluster")
    assert found.tolist() == wanted
    assert 1 < len(np.unique(found)) < 300


def test_near_and_exact_copies_share_a_group_and_others_do_not() -> None:
    """Half in common is enough; empty texts are copies of each other; hostile ones do no harm."""
    words = [f"w{i}" for i in range(60)]
    other = [f"v{i}" for i in range(60)]
    texts = [
        " ".join(words),
        " ".join([*words[:48], "x", *words[48:]]),
        "\0",
        "",
        " ".join(other),
        " ".join(words).upper(),
        "",
        "a" * 1_000_000,
    ]
    found = groups(pl.Series(texts))
    assert found.tolist() == [0, 0, 2, 3, 4, 0, 3, 7]
    assert groups(pl.Series([], dtype=pl.String)).tolist() == []


def test_one_repeated_text_is_one_group_and_no_error() -> None:
    """A cluster of the whole corpus is a fact for the split to deal with, where a run would stop at it."""
    assert set(groups(pl.Series(["the same five words and more"] * 3000)).tolist()) == {0}


def test_keys_name_a_text_wherever_it_stands(jsonl: Jsonl) -> None:
    """The same text in another file, at another position, has the same key; other texts have others."""
    one = read(str(jsonl([chat(i) for i in range(20)])))
    two = read(str(jsonl([chat(i) for i in range(50, 4, -1)], "two.jsonl")))
    assert len(np.unique(keys(one.frame["text"]))) == 20
    shared = dict(zip(two.frame["text"], keys(two.frame["text"]).tolist(), strict=True))
    assert [shared[text] for text in one.frame["text"][5:]] == keys(one.frame["text"]).tolist()[5:]


def test_real_corpora_are_read_whole(shared: Path) -> None:
    """Each of the nine chat files gives all its rows; only the repetitive one has a group of most of its corpus."""
    for path in sorted((shared / "chat").glob("*.parquet")):
        made = read(str(path))
        assert len(made.frame) == pl.scan_parquet(path).select(pl.len()).collect().item()
        largest = int(np.bincount(groups(made.frame["text"])).max())
        assert largest < (0.5 if path.stem == "vicuna_identity" else 0.05) * len(made.frame), path.stem
        assert json.dumps(made.notes) == "[]"
