"""The most similar conversation of an earlier corpus is that of a comparison of all pairs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dedup.against import Against
from stages.readers import RUN_KEYS
from stages.stage import MissingModelError, StageParameterError
from stages.text.corpus import Corpus
from tests import strategies
from tests.conftest import Refine, chat
from tests.stages.dedup_reference import jaccard, shingles


def measured(stage: Against, texts: list[str], folder: Path) -> pl.DataFrame:
    """What the stage gives for texts."""
    stage.fit([], folder)
    return stage.open(folder)(pl.DataFrame({"text": texts}, schema={"text": pl.String}))


def jsonl(path: Path, records: list[Any]) -> str:
    """Records as JSON Lines; the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


few = st.one_of(
    st.lists(st.sampled_from(["a", "B,", "a b", "天气", "c"]), max_size=12).map(" ".join),
    st.sampled_from(strategies.ODD),
)


@settings(max_examples=60, deadline=None)
@given(old=st.lists(few, max_size=8), new=st.lists(few, min_size=1, max_size=8))
def test_the_nearest_is_that_of_all_pairs(
    old: list[str], new: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With bands of one row every pair at the floor is a candidate; the first of equals is named."""
    folder = tmp_path_factory.mktemp("against")
    corpus = jsonl(folder / "old.jsonl", [{"id": i, "text": text} for i, text in enumerate(old)] or [{"text": "one"}])
    found = measured(Against(corpus, recall=1.0), new, folder / "stage")
    olds = [shingles(text) for text in (old or ["one"])]
    for row, text in zip(found.to_dicts(), new, strict=True):
        near = [jaccard(shingles(text), other) for other in olds]
        best = max(near)
        if best < 0.5:
            assert row["against_jaccard"] is None
            assert row["against_id"] is None
        else:
            assert row["against_jaccard"] == pytest.approx(best, abs=1e-6)
            assert row["against_id"] in {str(near.index(best)), "old.jsonl:1"}
        assert row["against_crowded"] is False


def test_real_increments_are_found_with_their_jaccard(shared: Path, tmp_path: Path) -> None:
    """Half of a corpus against the other half: recall at or above 0.8 is 0.99 or more, and every Jaccard is exact."""
    messages = pl.read_parquet(shared / "chat" / "oasst_100trees.parquet")["messages"]
    texts = messages.list.eval(pl.element().struct.field("content")).list.join("\n").to_list()[:220]
    old, new = texts[::2], texts[1::2]
    corpus = jsonl(tmp_path / "old.jsonl", [{"text": text} for text in old])
    found = measured(Against(corpus), new, tmp_path / "stage")["against_jaccard"].fill_null(0).to_list()
    olds = [shingles(text) for text in old]
    best = [max(jaccard(shingles(text), other) for other in olds) for text in new]
    assert sum(b >= 0.8 for b in best) > 10
    assert sum(f == pytest.approx(b, abs=1e-6) for f, b in zip(found, best, strict=True) if b >= 0.8) >= 0.99 * sum(
        b >= 0.8 for b in best
    )
    assert all(f <= b + 1e-6 for f, b in zip(found, best, strict=True))


TEXT = "The river runs under an old stone bridge and nobody knows who built it there."
MESSAGES = [{"role": "user", "content": TEXT[:40]}, {"role": "assistant", "content": TEXT[40:]}]


def _messages(path: Path) -> Path:
    return Path(jsonl(path.with_suffix(".jsonl"), [{"prompt_id": 7, "messages": MESSAGES, "text": "else"}]))


def _sharegpt(path: Path) -> Path:
    turns = [{"from": "human", "value": TEXT[:40]}, {"from": "gpt", "value": TEXT[40:]}]
    path.with_suffix(".json").write_text(json.dumps([{"id": "7", "conversations": turns}]))
    return path.with_suffix(".json")


def _crossed(path: Path) -> Path:
    turns = [{"role": "user", "content": TEXT[:40]}, {"role": "assistant", "content": None, "value": TEXT[40:]}]
    path.with_suffix(".json").write_text(json.dumps([{"id": "7", "conversations": turns}]))
    return path.with_suffix(".json")


def _original(path: Path) -> Path:
    packed = gzip.compress(json.dumps({"id": "7", "data": [TEXT[:40], TEXT[40:]]}).encode())
    path.with_suffix(".jsonl.gz").write_bytes(packed)
    return path.with_suffix(".jsonl.gz")


def _parquet(path: Path) -> Path:
    pl.DataFrame([{"id": 7, "messages": MESSAGES}]).write_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [_messages, _sharegpt, _crossed, _original, _parquet])
def test_an_earlier_corpus_is_read_in_every_form(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """UltraChat, ShareGPT, both mixed, UltraChat's original, Parquet; a file or its folder."""
    (tmp_path / "old").mkdir()
    path = write(tmp_path / "old" / "corpus")
    text = f"{TEXT[:40]}\n{TEXT[40:]}"
    for corpus in (path, path.parent):
        found = measured(Against(str(corpus)), [text, "Something else that is not there at all."], tmp_path / "stage")
        assert found.rows() == [(1.0, "7", False), (None, None, False)]


def test_without_ids_the_file_and_row_are_named(tmp_path: Path) -> None:
    """So that the match can be looked up."""
    corpus = jsonl(tmp_path / "old.jsonl", [{"text": "one"}, {"text": TEXT}])
    assert measured(Against(corpus), [TEXT], tmp_path / "stage")["against_id"][0] == "old.jsonl:2"


def test_of_equally_similar_ones_the_first_is_named(tmp_path: Path) -> None:
    """Whatever order they are compared in: of 40 with one Jaccard, each band has others first."""
    corpus = jsonl(tmp_path / "old.jsonl", [{"text": f"{TEXT} {word}"} for word in range(40)])
    found = measured(Against(corpus), [TEXT, TEXT.upper()], tmp_path / "stage")
    assert found["against_id"].to_list() == ["old.jsonl:1"] * 2


def test_the_floor_itself_counts(tmp_path: Path) -> None:
    """A Jaccard of exactly `floor` is named; one just under it is not."""
    words = [f"w{i}" for i in range(44)]
    corpus = jsonl(tmp_path / "old.jsonl", [{"text": " ".join(words)}])
    for floor, value in ((0.75, 0.75), (0.7501, None)):
        stage = Against(corpus, floor=floor, recall=1.0)
        assert measured(stage, [" ".join(words[:34])], tmp_path / "stage")["against_jaccard"].to_list() == [value]


def test_odd_bytes_of_an_earlier_corpus_are_read_as_ingest_reads_them(tmp_path: Path) -> None:
    """A byte order mark, bytes that are not UTF-8, half a surrogate pair, no text: the others are still found."""
    lines = [b'\xef\xbb\xbf{"id": 1, "text": "%s"}' % TEXT.encode(), b'{"id": 2, "text": "bad \xff byte"}']
    lines += [b'{"id": 3, "text": "half \\ud800"}', b"", b'{"id": 4, "text": null}', b'{"id": "five", "text": "six"}']
    (tmp_path / "odd.jsonl").write_bytes(b"\r\n".join(lines))
    (tmp_path / "odd.json").write_bytes(b"[" + b",".join(line.lstrip(b"\xef\xbb\xbf") for line in lines if line) + b"]")
    for name in ("odd.jsonl", "odd.json"):
        found = measured(Against(str(tmp_path / name)), [TEXT, "bad \ufffd byte", "half ?", "six"], tmp_path / "stage")
        assert found["against_id"].to_list() == ["1", "2", "3", "five"]


def test_a_large_file_is_read_by_parts_and_rows_are_still_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole lines of some bytes at a time."""
    monkeypatch.setattr("stages.text.corpus.BATCH_BYTES", 100)
    path = jsonl(tmp_path / "old.jsonl", [{"text": f"text number {i}"} for i in range(50)])
    read = list(Corpus(path).batches())
    assert len(read) > 5
    assert pl.concat(read).rows() == [(f"text number {i}", f"old.jsonl:{i + 1}") for i in range(50)]


def test_a_crowd_is_compared_with_its_first_rows_and_marked(tmp_path: Path) -> None:
    """Beyond `bucket` rows of a band key the signal marks that some may be missed; exact copies are one row."""
    crowd = [f"{TEXT} {TEXT.upper()} " + f"{TEXT} {i}" for i in range(6)]
    corpus = jsonl(
        tmp_path / "old.jsonl",
        [{"text": text} for text in [*crowd, *["Six copies of one other text are one row."] * 6]],
    )
    found = measured(
        Against(corpus, bucket=2), [crowd[0], "Six copies of one other text are one row."], tmp_path / "stage"
    )
    assert found["against_crowded"].to_list() == [True, False]
    assert found["against_jaccard"].to_list() == [1, 1]


def test_a_bucket_of_exactly_the_bound_is_no_crowd(tmp_path: Path) -> None:
    """Two near-duplicates and a bound of 2: nothing can have been missed; a third one is too many."""
    texts = [{"text": f"{TEXT} {TEXT.upper()} {TEXT} {i}"} for i in range(3)]
    for size, crowded in ((2, False), (3, True)):
        stage = Against(jsonl(tmp_path / "old.jsonl", texts[:size]), bucket=2)
        assert measured(stage, [texts[0]["text"]], tmp_path / "stage")["against_crowded"].to_list() == [crowded]


def test_an_increment_is_refined_against_a_run(refine: Refine, tmp_path: Path) -> None:
    """A run folder stands for its refined conversations; what is there already is dropped, and the match is shown."""
    long = [chat(i, 4) for i in range(30)]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(one) + "\n" for one in long[:20]))
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(one) + "\n" for one in long[10:]))
    (tmp_path / "plan.toml").write_text("")
    first = refine("run", "old.jsonl", "--plan", "plan.toml", "--out", "old", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "plan.toml").write_text(
        '[[stage]]\nuse = "against"\ncorpus = "old"\n\n[[drop]]\nreason = "released"\n'
        'where = "against_jaccard >= 0.9 AND against_id IS NOT NULL"\n'
    )
    second = refine("run", "new.jsonl", "--plan", "plan.toml", "--out", "new", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    rejected = pl.read_parquet(tmp_path / "new" / "rejected" / "*.parquet")
    old = pl.read_parquet(tmp_path / "old" / "refined" / "*.parquet")
    assert rejected["prompt_id"].to_list() == [f"p{i}" for i in range(10, 20)]
    assert [json.loads(values)["against_id"] for values in rejected["values"]] == old["id"].to_list()[10:]


def test_measuring_parts_is_measuring_the_whole(tmp_path: Path) -> None:
    """A row's signals do not depend on its neighbours, nor on the order they come in; odd and huge texts do no harm."""
    corpus = jsonl(tmp_path / "odd.jsonl", [{"text": text} for text in [*strategies.ODD, TEXT, "word " * 200_000]])
    texts = [*strategies.ODD, TEXT, "word " * 200_000, "今" * 300_000, f"{TEXT} And more."]
    stage, folder = Against(corpus), tmp_path / "stage"
    whole = measured(stage, texts, folder)
    assert pl.concat([measured(stage, texts[:9], folder), measured(stage, texts[9:], folder)]).equals(whole)
    assert measured(stage, texts[::-1], folder).reverse().equals(whole)
    assert whole["against_jaccard"][: len(strategies.ODD) + 2].to_list() == [1] * (len(strategies.ODD) + 2)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    """A missing corpus, an incomplete run, no usable column, broken files, a parameter out of range."""
    with pytest.raises(MissingModelError, match="no corpus at '/nowhere'"):
        Against("/nowhere").digest()
    (tmp_path / "run" / "raw").mkdir(parents=True)
    (tmp_path / "run" / "source.json").write_text(json.dumps(dict.fromkeys(RUN_KEYS)))
    with pytest.raises(MissingModelError, match="is a run that is not complete"):
        Against(str(tmp_path / "run")).digest()
    with pytest.raises(StageParameterError, match="has the columns x: expected `messages`"):
        measured(Against(jsonl(tmp_path / "a.jsonl", [{"x": 1}])), [], tmp_path / "stage")
    pairs = jsonl(tmp_path / "p.jsonl", [{"messages": [{"human": TEXT, "assistant": TEXT}]}])
    with pytest.raises(
        StageParameterError, match="expected `messages` or `conversations`, whose messages have content"
    ):
        measured(Against(pairs), [], tmp_path / "stage")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(StageParameterError, match=r"b\.jsonl' is not JSON on line 2"):
        measured(Against(str(tmp_path / "b.jsonl")), [], tmp_path / "stage")
    (tmp_path / "e.jsonl").write_text("3\n")
    with pytest.raises(StageParameterError, match="has int on line 1, expected a JSON object"):
        measured(Against(str(tmp_path / "e.jsonl")), [], tmp_path / "stage")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(StageParameterError, match="the earlier corpus holds no conversation"):
        measured(Against(str(tmp_path / "e.jsonl")), [], tmp_path / "stage")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(StageParameterError, match=r"c\.parquet' cannot be read"):
        measured(Against(str(tmp_path / "c.parquet")), [], tmp_path / "stage")
    with pytest.raises(StageParameterError, match=r"against: floor is 0\.0"):
        Against(floor=0.0)


def test_another_content_is_another_stage(tmp_path: Path) -> None:
    """A corpus that grew is indexed again."""
    stage = Against(jsonl(tmp_path / "old.jsonl", [{"text": TEXT}]))
    before = stage.digest()
    jsonl(tmp_path / "old.jsonl", [{"text": TEXT}, {"text": "more"}])
    assert stage.digest() != before


def test_without_a_corpus_all_is_null_with_a_note(tmp_path: Path) -> None:
    """Null is not "new"."""
    assert measured(Against(), ["text"], tmp_path).rows() == [(None, None, None)]
    assert "no `corpus` is given" in Against().notes()[0]


def test_a_corpus_that_has_not_changed_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run computes the digest at every shard: a corpus of gigabytes is not read each time."""
    reads = []
    opened = Path.open

    def counted(self: Path, *words: Any, **more: Any) -> Any:
        reads.append(self)
        return opened(self, *words, **more)

    stage = Against(jsonl(tmp_path / "old.jsonl", [{"text": TEXT}]))
    monkeypatch.setattr(Path, "open", counted)
    assert len({stage.digest() for _ in range(5)}) == 1
    assert len(reads) == 1


def test_what_a_killed_fit_left_does_no_harm(tmp_path: Path) -> None:
    """Half an index, or another one, is replaced as a whole."""
    folder = tmp_path / "stage"
    measured(Against(jsonl(tmp_path / "a.jsonl", [{"text": "another text"}])), [], folder)
    (folder / ".index.1.scratch").mkdir()
    (folder / ".index.1.scratch" / "sets").write_bytes(bytes(64))
    found = measured(Against(jsonl(tmp_path / "b.jsonl", [{"text": TEXT}])), [TEXT, "another text"], folder)
    assert found["against_jaccard"].to_list() == [1, None]
    assert sorted(path.name for path in folder.iterdir()) == ["fitted.json", "index"]
