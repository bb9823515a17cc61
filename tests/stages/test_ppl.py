"""The perplexity stage: scores of a conversation, their rank in the corpus, and the errors it raises."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import columns as column_files
from stages.ngram import train
from stages.ppl import Perplexity, places
from stages.ppl.score import load
from stages.ppl.tokens import halves, tokenise
from stages.stage import RAW, MissingModelError, StageParameterError
from tests.stages.test_ngram_lmplz import TEXT

Chat = Sequence[tuple[str, str]]


def raw(chats: Sequence[Chat]) -> pl.DataFrame:
    """What a raw shard holds, as far as this stage reads it."""
    messages = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    texts = ["\n".join(content for _, content in chat) for chat in chats]
    ids = [f"c-{i}" for i in range(len(chats))]
    schema = pl.Schema({name: RAW[name] for name in ("id", "text", "messages", "source", "details")})
    columns = {"id": ids, "text": texts, "messages": messages, "source": ["test"] * len(chats), "details": None}
    return pl.DataFrame(columns, schema=schema)


def shards(folder: Path, chats: Sequence[Chat], rows: int = 50) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    frame, paths = raw(chats), []
    for start in range(0, max(len(chats), 1), rows):
        paths.append(folder / f"{start:05d}.parquet")
        frame[start : start + rows].write_parquet(paths[-1])
    return paths


def chats(n: int) -> list[Chat]:
    """Distinct conversations made of the test's own lines."""
    choose = random.Random(7)
    return [[("user", choose.choice(TEXT)), ("assistant", "\n".join(choose.sample(TEXT, 2)))] for _ in range(n)]


def run(folder: Path, paths: Sequence[Path], stage: Perplexity) -> pl.DataFrame:
    """Fit, measure and merge, as a run does."""
    folder.mkdir(parents=True, exist_ok=True)
    stage.fit(paths, folder)
    measure, measured = stage.open(folder), []
    for path in paths:
        shard = pl.read_parquet(path)
        measured.append(folder / path.name)
        shard.select("id").hstack(measure(shard.select(stage.reads))).write_parquet(measured[-1])
    stage.merge(paths, measured, folder)
    frames = [pl.read_parquet(p).hstack(pl.read_parquet(folder / "merged" / p.name).drop("id")) for p in measured]
    return pl.concat(frames)


def test_perplexity_is_per_token_with_line_ends_counted(tmp_path: Path) -> None:
    """As computed by hand from the library's scores: all lines, each role's, and the worst message that is long."""
    path = train([pl.Series(TEXT)], tmp_path / "model.arpa").path
    score = load(path)
    stage = Perplexity(model=str(path), turn_tokens=4)
    chat = [
        ("system", "The gate!"),
        ("user", "Where does the ROAD go?\n\nA cup of water."),
        ("assistant", "the sea"),
        ("user", "quite unheard of words here"),
    ]
    got = stage.open(tmp_path)(raw([chat]).select(stage.reads)).row(0, named=True)
    lines = [
        ["the gate !"],
        ["where does the road go ?", "a cup of water ."],
        ["the sea"],
        ["quite unheard of words here"],
    ]
    scores = [sum(score(line) for line in turn) for turn in lines]
    tokens = [sum(len(line.split()) + 1 for line in turn) for turn in lines]
    assert tokens == [4, 13, 3, 6]
    assert got["ppl_tokens"] == 26
    assert got["ppl"] == pytest.approx(10 ** (-sum(scores) / 26), rel=1e-6)
    assert got["ppl_user"] == pytest.approx(10 ** (-(scores[1] + scores[3]) / 19), rel=1e-6)
    assert got["ppl_assistant"] == pytest.approx(10 ** (-scores[2] / 3), rel=1e-6)
    assert got["ppl_worst_turn"] == pytest.approx(10 ** (-scores[3] / 6), rel=1e-6)
    assert (got["ppl_worst_role"], got["ppl_worst_index"]) == ("user", 3)
    for least, worst in ((13, 1), (14, None)):  # the longest message has 13 tokens
        stage = Perplexity(model=str(path), turn_tokens=least)
        assert stage.open(tmp_path)(raw([chat]).select(stage.reads))["ppl_worst_index"].to_list() == [worst]


def test_nothing_to_score_is_null(tmp_path: Path) -> None:
    """No messages, empty ones and ones of control characters: null everywhere, and the row stays in its place."""
    path = train([pl.Series(TEXT)], tmp_path / "model.arpa").path
    stage = Perplexity(model=str(path))
    frame = raw([[], [("user", ""), ("assistant", " \n\0\t\n")], [("user", "the sea")]])
    got = stage.open(tmp_path)(frame.select(stage.reads))
    assert got.select(pl.all().is_null().all(ignore_nulls=False)).height == 1
    assert got[:2].null_count().sum_horizontal().item() == 2 * got.width
    assert got["ppl"][2] > 1


def test_a_conversation_is_scored_by_the_model_that_never_saw_it(tmp_path: Path) -> None:
    """Its perplexity is that of a model trained on the other half alone."""
    made = chats(60)
    got = run(tmp_path / "fit", shards(tmp_path / "raw", made), Perplexity())
    frame = raw(made)
    side = pl.Series(halves(frame["text"]))
    for half in (0, 1):
        other = frame.filter(side != half)["messages"].explode().struct.field("content")
        path = train([tokenise(other)["line"]], tmp_path / f"{half}.arpa").path
        alone = Perplexity(model=str(path)).open(tmp_path)(frame.filter(side == half).select("text", "messages"))
        assert got.filter(side == half)["ppl"].to_list() == alone["ppl"].to_list()


@given(st.text(alphabet="abc XY.,!?\n0123456789-", min_size=1), st.sampled_from([" ", "\n", "!", "  ,"]))
def test_trivial_variants_are_never_in_different_halves(text: str, extra: str) -> None:
    """Another case, spaces, punctuation or other digits do not move a text to the other half."""
    if not any(c.isalnum() for c in text):
        return
    digits = text.translate(str.maketrans("0123456789", "9876543210"))
    variants = pl.Series([text, text.upper(), extra + text + extra, text.replace(" ", extra), digits])
    assert len({*halves(variants)}) == 1


def test_halves_are_even_and_never_move() -> None:
    """About half of different texts each; these ones stay where they are for ever, or old runs are not reproduced."""
    side = halves(pl.Series([f"text number {'abcdefghij'[i % 10] * (i // 10 + 1)}" for i in range(2000)]))
    assert 0.45 < side.mean() < 0.55
    fixed = ["the miller", "the road", "a pear", "", "?!", "..."]  # without letters, the text as it is counts
    assert halves(pl.Series(fixed)).tolist() == [1, 1, 0, 0, 0, 1]


def test_tokens_are_lower_case_words_and_marks_with_digits_as_zero() -> None:
    """Contractions split at the mark; scripts without spaces are taken letter by letter; lines are kept apart."""
    text = pl.Series(["Don't pay $12.50!\r\n\n  OK…", "他们说 hi", "", "\0 \x07"])
    got = tokenise(text)
    assert got["line"].to_list() == ["don ' t pay $ 00 . 00 !", "ok …", "他 们 说 hi"]
    assert got["at"].to_list() == [0, 0, 1]
    assert got["n"].to_list() == [10, 3, 5]


SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN = rf"[{SPACELESS}]|[\w--[{SPACELESS}]]+|[^\w\s\p{{Cc}}]"


def by_patterns(text: pl.Series) -> tuple[pl.DataFrame, list[int]]:
    """Lines of tokens and halves, by regular expressions."""
    lines = pl.DataFrame({"at": pl.int_range(len(text), dtype=pl.UInt32, eager=True), "line": text.str.split("\n")})
    tokens = pl.col("line").str.to_lowercase().str.replace_all(r"\d", "0").str.extract_all(TOKEN)
    lines = lines.explode("line").with_columns(tokens).filter(pl.col("line").list.len() > 0)
    bare = text.str.to_lowercase().str.replace_all(r"\d", "0").str.replace_all(r"[^\p{L}\p{M}\p{N}]+", "")
    hashed = [one or other for one, other in zip(bare, text, strict=True)]
    sides = [hashlib.blake2b(one.encode(), digest_size=1).digest()[0] & 1 for one in hashed]
    return lines.select("at", pl.col("line").list.join(" "), n=pl.col("line").list.len() + 1), sides


def test_tokens_and_halves_of_each_character_are_those_of_the_patterns() -> None:
    """The compiled loops agree with regular expressions on every code point of the planes that have characters.

    In the other planes, on every 64th.
    """
    codes = (*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), *range(0x32400, 0x110000, 64))
    every = pl.Series([chr(code) for code in codes])
    lines, sides = by_patterns(every)
    assert tokenise(every).equals(lines)
    assert halves(every).tolist() == sides


@given(st.lists(st.text(alphabet="aB ΑΣ.İé好ก\n\r1٣x_\0😀\u0301Ⱥ\u200d"), max_size=4), st.integers(0, 4))
def test_tokens_and_halves_of_texts_are_those_of_the_patterns(texts: list[str], cut: int) -> None:
    """Words, lower case that depends on the neighbours, empty lines; messages together are their joined text."""
    lines, sides = by_patterns(pl.Series(texts, dtype=pl.String))
    assert tokenise(pl.Series(texts, dtype=pl.String)).equals(lines)
    assert halves(pl.Series(texts, dtype=pl.String)).tolist() == sides
    sizes = np.array([min(cut, len(texts)), max(len(texts) - cut, 0)])
    joined = pl.Series(["\n".join(texts[: sizes[0]]), "\n".join(texts[sizes[0] :])])
    assert halves(pl.Series(texts, dtype=pl.String), sizes).tolist() == by_patterns(joined)[1]


def test_the_fit_is_the_same_whatever_the_shards(tmp_path: Path) -> None:
    """Models are the same to the byte for the same conversations in the same order, cut into any shards.

    So they are if the halves were trained before, in any order. The leftovers of a killed training run are removed.
    """
    made = chats(60)
    for name, rows, before in (("a", 7, ()), ("b", 60, ("half1", "half0"))):
        (tmp_path / name / ".half0.1.scratch").mkdir(parents=True)
        raw = shards(tmp_path / f"raw-{name}", made, rows)
        for part in before:
            Perplexity().fit_part(part, raw, tmp_path / name)
        Perplexity().fit([] if before else raw, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["fitted.json", "half0.bin", "half1.bin", "models.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_tiny_corpora_work(tmp_path: Path) -> None:
    """One conversation has no other half to be scored by: null. Two in different halves score each other."""
    one = run(tmp_path / "one", shards(tmp_path / "r1", [[("user", "the sea")]]), Perplexity())
    assert one["ppl"].to_list() == [None]
    assert one["ppl_bucket"].to_list() == [None]
    none = run(tmp_path / "none", shards(tmp_path / "r0", []), Perplexity())
    assert none.height == 0
    texts = [f"word {'x' * i}" for i in range(20)]
    side = halves(pl.Series(texts)).tolist()
    pair: list[Chat] = [[("user", texts[side.index(half)])] for half in (0, 1)]
    two = run(tmp_path / "two", shards(tmp_path / "r2", pair), Perplexity())
    assert two["ppl"].null_count() == 0
    said = json.loads((tmp_path / "two" / "models.json").read_text())
    assert said["half0"]["fallback"]


def place(frame: pl.DataFrame, rows: int = 1000) -> pl.DataFrame:
    """The merged signals of a corpus in parts of so many rows."""
    frame = frame.cast({"ppl": pl.Float64, "ppl_tokens": pl.UInt32, "source": pl.String})
    parts = [frame[at : at + rows] for at in range(0, frame.height, rows)]
    with tempfile.TemporaryDirectory() as folder:
        return pl.concat(places.place(parts, [part.height for part in parts], Path(folder)))


def reference(frame: pl.DataFrame) -> pl.DataFrame:
    """The same from all rows at once, by expressions over the whole corpus."""
    ppl, scored = pl.col("ppl"), pl.col("ppl").count()
    percentile = (ppl.rank("average") - 0.5) / scored * 100
    bucket = pl.when(percentile < 30).then(pl.lit("head")).when(percentile < 60).then(pl.lit("middle"))
    pooled = pl.when(scored.over("source") >= 100).then(pl.col("source"))
    length = pl.when(ppl.is_not_null()).then("ppl_tokens").rank("min").cast(pl.Int64)
    group = ((length - 1) * (scored // 200).clip(1, 20) // scored).over("source")
    far, alike = pl.col("far"), ["source", "group"]
    above, below = (far.filter(side).median().over(alike) for side in (far > 0, far < 0))
    spread = pl.max_horizontal(pl.when(far > 0).then(above).otherwise(-below) * 1.4826, pl.lit(0.2))
    return (
        frame.with_columns(ppl_percentile=percentile, source=pooled)
        .with_columns(ppl_bucket=pl.when(ppl.is_not_null()).then(bucket.otherwise(pl.lit("tail"))))
        .with_columns(group=group, among=scored.over("source"))
        .with_columns(far=ppl.log() - ppl.log().median().over(alike))
        .select("ppl_percentile", "ppl_bucket", ppl_z=pl.when(pl.col("among") >= 100).then(far / spread))
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 90, 700, 5000]), st.sampled_from([1, 3, 7]), st.integers(0, 3))
def test_places_are_those_of_the_whole_corpus(seed: int, size: int, parts: int, digits: int) -> None:
    """Bit by bit, whatever the parts and chunks: ties, unscored rows, sources of all sizes, groups of equal lengths."""
    draw = np.random.default_rng(seed)
    scored = draw.random(size) > draw.choice([0, 0.1])
    columns = {
        "ppl": np.round(np.exp(draw.normal(3, 1, size)), digits) + 1,
        "ppl_tokens": draw.integers(1, draw.choice([3, 2000]), size),
        "source": [f"source {at}" for at in np.minimum(draw.pareto(1, size) * 2, draw.integers(1, 30)).astype(int)],
    }
    known = pl.when(pl.Series(scored)).then(pl.col("ppl", "ppl_tokens"))
    frame = pl.DataFrame(columns).cast({"ppl_tokens": pl.UInt32}).with_columns(known)
    with pytest.MonkeyPatch.context() as patch:
        for module in (places, column_files):
            patch.setattr(module, "CHUNK", 1 + size // parts)
        assert place(frame, 1 + size // parts // 2).equals(reference(frame))


def test_percentiles_share_ties_and_part_the_corpus_as_ccnet() -> None:
    """Equal perplexities have their mean rank; below 30 is head, below 60 middle; null stays null."""
    got = place(
        pl.DataFrame({"ppl": [4.0, 1.0, None, 2.0, 2.0], "ppl_tokens": [1, 1, None, 1, 1], "source": ["s"] * 5})
    )
    assert got["ppl_percentile"].to_list() == [87.5, 12.5, None, 50.0, 50.0]
    assert got["ppl_bucket"].to_list() == ["tail", "head", None, "middle", "middle"]
    assert got["ppl_z"].to_list() == [None] * 5


def test_z_finds_junk_and_leaves_a_clean_corpus_alone() -> None:
    """Of normal ln ppl whose spread shrinks with length hardly any |z| is above 4; e^6 times the median is above."""
    choose = random.Random(3)
    lengths = [choose.randint(5, 2000) for _ in range(4000)]
    clean = [math.exp(choose.gauss(4, 2 / math.sqrt(math.log(n)))) for n in lengths]
    z = place(pl.DataFrame({"ppl": clean, "ppl_tokens": lengths, "source": ["a"] * 4000}))["ppl_z"]
    assert z.abs().gt(4).sum() <= 4
    assert z.std() == pytest.approx(1, abs=0.1)
    junk = pl.DataFrame({"ppl": [*clean, *[math.exp(10)] * 40], "ppl_tokens": lengths + lengths[:40]})
    assert place(junk.with_columns(source=pl.lit("a")))["ppl_z"][-40:].min() > 4  # type: ignore[operator]


def test_sources_are_compared_each_with_itself() -> None:
    """A source that is harder throughout has no outlier for that; small ones are pooled, too few of them are null."""
    choose = random.Random(5)
    ppl = [math.exp(choose.gauss(mean, 0.5)) for mean in (2, 6) for _ in range(300)] + [50.0] * 80
    source = ["easy"] * 300 + ["hard"] * 300 + ["few"] * 50 + ["fewer"] * 30
    frame = pl.DataFrame({"ppl": ppl, "ppl_tokens": [50] * 680, "source": source})
    z = place(frame)["ppl_z"]
    assert [z[:300].median(), z[300:600].median()] == pytest.approx([0, 0], abs=0.01)
    assert [z[:300].std(), z[300:600].std()] == pytest.approx([1, 1], abs=0.25)
    assert z[600:].null_count() == 80
    pooled = place(pl.concat([frame, frame.tail(30).with_columns(source=pl.lit("third"))]))["ppl_z"]
    assert pooled[600:].to_list() == [0.0] * 110


def test_a_reference_corpus_of_any_shape_gives_the_same_model(tmp_path: Path) -> None:
    """Plain text, JSONL and Parquet with text or messages; what it holds is part of the stage's identity."""
    frame = pl.DataFrame({"text": TEXT})
    messages = raw([[("user", line)] for line in TEXT]).select("messages")
    (tmp_path / "a.txt").write_text("\n".join(TEXT) + "\n")
    frame.write_ndjson(tmp_path / "b.jsonl")
    frame.write_parquet(tmp_path / "c.parquet")
    messages.write_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    paths = shards(tmp_path / "raw", chats(5))
    models = set()
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.parquet", "e.jsonl.gz"):
        got = run(tmp_path / name.replace(".", "-"), paths, Perplexity(reference=str(tmp_path / name)))
        assert got["ppl"].null_count() == 0
        models.add((tmp_path / name.replace(".", "-") / "reference.bin").read_bytes())
    assert len(models) == 1
    stage = Perplexity(reference=str(tmp_path / "a.txt"))
    before = stage.digest()
    (tmp_path / "a.txt").write_text("other")
    assert stage.digest() != before


def test_what_is_missing_or_contradictory_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """No such model or reference, a file that is no model, two sources at once, a reference without a text column."""
    with pytest.raises(MissingModelError, match=r"nowhere\.arpa.*omit it"):
        Perplexity(model="nowhere.arpa").models()
    with pytest.raises(MissingModelError, match="no reference corpus at 'nowhere'"):
        Perplexity(reference="nowhere").models()
    with pytest.raises(StageParameterError, match="both given"):
        Perplexity(model="a", reference="b")
    Perplexity(order=6)
    with pytest.raises(StageParameterError, match="order is 7, expected at most 6, as kenlm is built"):
        Perplexity(order=7)
    with pytest.raises(StageParameterError, match="prune"):
        Perplexity(prune=(0, 2, 1))
    (tmp_path / "bad.arpa").write_text("this is no model")
    with pytest.raises(MissingModelError, match="cannot be loaded"):
        Perplexity(model=str(tmp_path / "bad.arpa")).open(tmp_path)
    pl.DataFrame({"body": ["x"]}).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(StageParameterError, match="body"):
        Perplexity(reference=str(tmp_path / "e.parquet")).fit([], tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StageParameterError, match=r"broken\.parquet.*is cut short"):
        Perplexity(reference=str(tmp_path / "broken.parquet")).fit([], tmp_path)
    (tmp_path / "f.txt").write_text("\n")
    with pytest.raises(StageParameterError, match="no text"):
        Perplexity(reference=str(tmp_path / "f.txt")).fit([], tmp_path)
