"""Training of n-gram models: the slow reference, a peer's golden model, and what every model must be."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.ngram import NgramError, NoLineError, binary, counts, train
from stages.ngram import sentences as numbering
from tests.stages.ngram_reference import Entry, Gram, counted, lmplz_discounts, mitlm_discounts, model

sentences = st.lists(st.lists(st.sampled_from("abcde"), max_size=7).map(" ".join), min_size=1, max_size=25)


def read(path: Path) -> dict[Gram, Entry]:
    """An ARPA file as the reference writes models; -99 and -inf are 0."""
    found: dict[Gram, Entry] = {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            found[tuple(fields[1].split(" "))] = (10 ** float(fields[0]), 10 ** float(fields[2]) if fields[2:] else 1.0)
    return found


def batches(lines: list[str], size: int = 3) -> list[pl.Series]:
    return [pl.Series(lines[i : i + size], dtype=pl.String) for i in range(0, len(lines), size)]


def assert_same(ours: dict[Gram, Entry], other: dict[Gram, Entry], tolerance: float = 2e-6) -> None:
    assert ours.keys() == other.keys()
    for gram, (prob, backoff) in other.items():
        assert ours[gram][0] == pytest.approx(prob, rel=tolerance, abs=1e-7), gram
        assert ours[gram][1] == pytest.approx(backoff, rel=tolerance, abs=1e-7), gram


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ngram") / "model.arpa"


@settings(max_examples=60, deadline=None)
@example(lines=["a", "a", "a", "a e b", "c", "a e b"], order=4, prune=(0,))  # lmplz 0.3.0: D1=0.6 D2=0.2 of order 3
@given(lines=sentences, order=st.integers(2, 5), prune=st.sampled_from([(0,), (0, 0, 1), (0, 1), (0, 0, 1, 2)]))
def test_a_model_is_the_one_that_the_definition_gives(
    out: Path, lines: list[str], order: int, prune: tuple[int, ...]
) -> None:
    """Every probability and backoff is that of the slow reference, whatever the order, pruning and corpus."""
    limits = (*prune, *[prune[-1]] * 5)[:order]
    trained = train(batches(lines), out, order=order, prune=prune[:order])
    expected = model(lines, order, limits, lmplz_discounts, unknown=True, quirk=True)
    assert_same(read(out), expected)
    assert sum(trained.sizes) == len(expected)
    assert trained.tokens == sum(len(line.split()) + 1 for line in lines)


@settings(max_examples=20, deadline=None)
@given(lines=sentences, size=st.integers(1, 9))
def test_batches_and_columns_on_disk_make_no_difference(out: Path, lines: list[str], size: int) -> None:
    """The file is the same to the byte however lines are batched, and whether columns are in memory or in files."""
    train(batches(lines), out)
    whole = out.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "IN_MEMORY", 8)
        patch.setattr(counts, "CHUNK", 10)
        patch.setattr(counts, "PARTITION", 4)
        patch.setattr(counts, "TABLE_BITS", 1)
        patch.setattr(numbering, "PART_BYTES", 20)
        patch.setattr(numbering, "_SLOTS", 8)
        train(batches(lines, size), out)
    assert out.read_bytes() == whole
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@settings(max_examples=20, deadline=None)
@given(lines=sentences, order=st.integers(2, 5), prune=st.sampled_from([(0,), (0, 0, 1), (0, 0, 1, 2)]))
def test_the_binary_file_holds_the_same_model(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], order: int, prune: tuple[int, ...]
) -> None:
    """`kenlm` gives each word the same probability, to the bit, and matches the same n-gram, as with the ARPA file."""
    import kenlm

    config, folder = kenlm.Config(), tmp_path_factory.getbasetemp()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    paths = [folder / "same.arpa", folder / "same.bin"]
    sizes = [train(batches(lines), path, order=order, prune=prune[:order]).sizes for path in paths]
    assert sizes[0] == sizes[1]
    one, other = (kenlm.Model(str(path), config) for path in paths)
    for line in [*lines, "e d c b a", "a nowhere b b", ""]:
        assert list(one.full_scores(line)) == list(other.full_scores(line))


def test_memory_of_training_is_bounded(tmp_path: Path) -> None:
    """Four times the text with the same words takes as much memory; the rest is in files, 200 bytes per token."""
    peaks, disk = [], []

    def note(*_: object) -> None:
        disk.append(sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "write", note)
        patch.setattr(counts, "IN_MEMORY", 1 << 12)
        patch.setattr(counts, "CHUNK", 1 << 12)
        patch.setattr(numbering, "PART_BYTES", 1 << 14)
        for tokens in (20_000, 80_000):
            words = np.random.default_rng(0).integers(0, 500, (tokens // 10, 10))
            lines = pl.Series(words).cast(pl.Array(pl.String, 10)).arr.join(" ")
            tracemalloc.start()
            train((lines[i : i + 100] for i in range(0, len(lines), 100)), tmp_path / "model.bin")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000
    assert disk[1] < 200 * 88_000


@settings(max_examples=15, deadline=None)
@given(lines=sentences, context=st.lists(st.sampled_from(["a", "b", "c", "nowhere"]), max_size=4))
def test_probabilities_after_any_context_sum_to_one(out: Path, lines: list[str], context: list[str]) -> None:
    """Over all words, the sentence end and one unknown word, pruned or not, as `kenlm` reads the file."""
    import kenlm

    train(batches(lines), out, order=4, prune=(0, 0, 1))
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    asked = kenlm.Model(str(out), config)
    words = [gram[0] for gram in read(out) if len(gram) == 1 and gram not in {("<s>",), ("<unk>",)}]
    before = asked.score(" ".join(context), eos=False)
    after = [asked.score(" ".join([*context, word]), eos=False) - before for word in [*words, "unheard-of"]]
    assert math.fsum(10**value for value in after) == pytest.approx(1, abs=1e-4)


def test_the_reference_and_so_the_trainer_agree_with_a_peer(shared: Path) -> None:
    """The golden model of mitlm is what the slow reference gives with mitlm's rules for degenerate counts.

    mitlm-0.4, tests/data; it has no <unk>, and takes the closed form even where counts of counts are 0.
    """
    text = "a b c d\nc d e\nd e".splitlines()
    ours = model(text, 3, (0, 0, 0), mitlm_discounts, unknown=False, quirk=False)
    golden = read(shared / "ngram" / "mitlm_small_modkn3.arpa")
    golden[("<s>",)] = (1.0, golden[("<s>",)][1])  # -99 there, 0 in lmplz: it is never asked for
    assert ours.keys() == golden.keys()
    for gram, (prob, backoff) in golden.items():
        assert ours[gram][0] == pytest.approx(prob, abs=2e-6), gram
        assert ours[gram][1] == pytest.approx(backoff, abs=2e-6), gram


def test_counts_are_those_of_peers(shared: Path) -> None:
    """The reference's counts, which the trainer's models follow, are mitlm's on its own test."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (shared / "ngram" / "ngram_lm.jsonl").read_text().splitlines()
    ]
    counts = [row for row in rows if row["kind"] == "ngram_counts" and row["source"]["repo"] == "mitlm/mitlm"]
    row = next(row for row in counts if row["input"]["vocab"] is None)
    found = {" ".join(gram): n for table in counted(row["input"]["text"].splitlines(), 3) for gram, n in table.items()}
    assert found == {gram: n for gram, n in row["expected"]["counts"].items() if gram != "<s>"} | {"</s>": 3}


@pytest.mark.parametrize("prune", [(1,), (0, 2, 1), (0, 0, 0, 0, 0, 1)])
def test_a_pruning_that_lmplz_refuses_is_refused(out: Path, prune: tuple[int, ...]) -> None:
    """Pruned words, thresholds that fall, and more thresholds than orders are named in one sentence."""
    with pytest.raises(NgramError, match="prune"):
        train(batches(["a b"]), out, prune=prune)


def test_no_line_and_special_words_are_refused(out: Path) -> None:
    """A corpus of nothing and one that holds <s> as a word end in a sentence that says so."""
    with pytest.raises(NoLineError, match="no line"):
        train([pl.Series([], dtype=pl.String)], out)
    with pytest.raises(NgramError, match="<s>"):
        train(batches(["a <s> b"]), out)


def test_words_of_a_megabyte_and_odd_unicode_come_through(out: Path) -> None:
    """A word of 1 MB, right-to-left text, U+FFFD and joined emoji are words like any other to trainer and library."""
    from stages.ppl.score import load

    lines = ["x" * 1_000_000 + " b", "سلام دنیا", "\ufffd \U0001f468\u200d\U0001f469", "x" * 1_000_000 + " b"]
    train(batches(lines), out)
    score = load(out)
    assert all(score(line) > score("unheard of") for line in lines)
