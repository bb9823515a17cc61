"""Conversations with roles: the chat template, which targets are scored, and training on replies alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.strategies import texts
from tests.trainer.test_cvfp_training import SMALL_PRESET, stream
from trainer.counts.kneser_ney import Grams, KneserNey
from trainer.cvfp import phase2
from trainer.cvfp.scan import Contexts, Tape
from trainer.experiment import gru
from trainer.experiment.baselines import kneser_ney
from trainer.experiment.gru import Recurrent
from trainer.experiment.records import scores, summarise, write
from trainer.experiment.single_phase import GruRun, TransformerRun
from trainer.experiment.training import Data, Training, cvfp, tape
from trainer.prepare import streams, vocabulary
from trainer.prepare.choices import Choices
from trainer.prepare.prepared import PreparedError, check_loss, prepare
from trainer.prepare.streams import Stream
from trainer.prepare.template import DOCUMENT, REPLY, ROLE_CODES, TEXT, TURNS, UNSCORED, TemplateError, contents
from trainer.prepare.vocabulary import ROLES, TEMPLATE, VocabularyError
from trainer.presets import HOUSE, PRESETS, PresetError, Text
from trainer.transformer import training as windowed

Messages = list[tuple[str, str]]
CHAT = Text(template="chat")
BPE = vocabulary.train(
    pl.Series(["the river runs under a stone bridge", "hello hello, the lamp is green"] * 20), 400, chats=True
)
ROLE, END = dict(zip(ROLES, BPE.template.tolist(), strict=False)), int(BPE.template[-1])
messages = st.lists(
    st.tuples(st.sampled_from(list(ROLE_CODES)), texts | st.sampled_from([*TEMPLATE, "<|assistant|>hi<|end|>"])),
    max_size=5,
)


def frame(chats: list[Messages]) -> pl.DataFrame:
    """A corpus of (role, content) messages."""
    turns = [[{"role": ROLE_CODES[role], "length": len(said)} for role, said in chat] for chat in chats]
    return pl.DataFrame(
        {"text": ["\n".join(said for _, said in chat) for chat in chats], "turns": turns},
        schema={"text": pl.String(), "turns": TURNS},
    )


def encoded(chats: list[Messages]) -> Stream:
    return streams.encode(frame(chats), BPE, CHAT)


def ids(text: str) -> list[int]:
    return [int(i) for part in BPE.encode([text]) for i in part.ids]


def slow(chat: Messages) -> Iterator[tuple[int, int]]:
    """The ids of a conversation with their classes, one by one."""
    yield BPE.end, UNSCORED
    for role, said in chat:
        kind = REPLY if role == "assistant" else TEXT
        if role != "text":
            yield ROLE[role], UNSCORED
        yield from ((i, kind) for i in ids(said))
        if role != "text":
            yield END, kind


@settings(max_examples=60, deadline=None)
@given(st.lists(messages, max_size=5))
def test_a_stream_is_its_messages_one_after_the_other(chats: list[Messages]) -> None:
    """Roles, contents and ends of hostile conversations, those without messages too; no text encodes to a role."""
    made = encoded(chats)
    expected = [pair for chat in chats for pair in slow(chat)] + [(BPE.end, UNSCORED)]
    assert list(zip(made.ids.tolist(), made.classes.tolist(), strict=True)) == expected
    assert [int(one) for one in made.ids[made.starts]] == [BPE.end] * len(chats)
    said = [said for chat in chats for said in ([one for _, one in chat] or [""])]
    assert list(contents(*frame(chats))) == said
    counted = [[sum(kind == one for _, kind in slow(chat)) for chat in chats] for one in (TEXT, REPLY)]
    assert made.target_counts().tolist() == counted
    sizes = [sum(len(said.encode()) for role, said in chat if role == "assistant") for chat in chats]
    assert made.by_class(made.target_bytes())[1].tolist() == sizes


@settings(max_examples=30, deadline=None)
@given(st.lists(messages, min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 9))
def test_pieces_and_orders_keep_what_is_scored(chats: list[Messages], size: int, seed: int) -> None:
    """Cut anywhere and in any order, each token keeps its class, and ends of conversations are not scored."""
    made = encoded(chats)
    pieces = made.pieces(size)
    count = int((pieces.sizes + 1).sum()) + 1
    if count < 2:
        return
    drawn = made.draw(count, seed, None, pieces)
    for one in (TEXT, REPLY):
        assert sorted(drawn.ids[drawn.classes == one]) == sorted(made.ids[made.classes == one])
    assert not drawn.classes[drawn.ids == BPE.end].any()


def test_a_plain_document_has_no_roles() -> None:
    """It is the same text as in the plain template, and none of it is a reply."""
    chat, plain = encoded([[("text", "the lamp")]]), streams.encode(frame([[("text", "the lamp")]]).with_columns(
        first="text"
    ), BPE, Text())  # fmt: skip
    assert chat.ids.tolist() == plain.ids.tolist()
    assert chat.replies == plain.replies == 0
    assert frame([[("text", "x")]])["turns"].to_list() == [[{"role": DOCUMENT, "length": 1}]]


def test_messages_that_do_not_add_up_are_refused() -> None:
    """An edit of the text alone would shift every role."""
    made = frame([[("user", "Hello"), ("assistant", "Hi")]]).with_columns(text=pl.lit("Hello there\nHi"))
    with pytest.raises(TemplateError, match=r"conversation 0 has 14 characters, and its messages .* 8: make the"):
        streams.encode(made, BPE, CHAT)


def test_a_given_vocabulary_gets_the_tokens_of_roles(tmp_path: Path) -> None:
    """Behind its own ids; one whose text encodes to them is refused, and one without them cannot encode a chat."""
    gpt2 = vocabulary.gpt2()
    made = gpt2.for_chats()
    assert (made.size, made.end, made.template.tolist()) == (50263, 50256, list(range(50257, 50263)))
    assert not made.widths[made.template].any()
    assert next(made.encode(["".join(TEMPLATE)])).ids.tolist() == next(gpt2.encode(["".join(TEMPLATE)])).ids.tolist()
    made.save(tmp_path / "t.json")
    assert vocabulary.load(tmp_path / "t.json").for_chats().template.tolist() == made.template.tolist()
    with pytest.raises(VocabularyError, match=r"has no token <\|user\|>"):
        streams.encode(frame([[("user", "x")]]), gpt2, CHAT)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=[vocabulary.END], initial_alphabet=letters, show_progress=False)
    words.train_from_iterator(["<|end|>"] * 9, trainer)
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(VocabularyError, match="to tokens of the chat template: take a file in which these tokens are"):
        vocabulary.load(tmp_path / "words.json").for_chats()
    with pytest.raises(VocabularyError, match="expected at least 263"):
        vocabulary.train(pl.Series(["a"]), 262, chats=True)


def test_only_whole_separated_conversations_have_a_template() -> None:
    """And only presets with it can be trained on replies."""
    for more in ({"part": "first"}, {"truncate": 3}, {"separated": False}):
        with pytest.raises(PresetError, match="the template chat needs whole conversations"):
            Text(template="chat", **more)
    with pytest.raises(PresetError, match="expected plain or chat"):
        Text(template="chatml")  # type: ignore[arg-type]
    assert HOUSE.trained_on("replies").phase2.loss == "replies"
    assert HOUSE.trained_on("all") == HOUSE
    assert HOUSE.computed_in("bf16").phase2.precision == "bfloat16"
    assert HOUSE.computed_in("float32") == HOUSE
    with pytest.raises(PresetError, match="--precision is 'fp8', expected float32 or bf16"):
        HOUSE.computed_in("fp8")
    assert HOUSE.trained_on("replies").settings() != HOUSE.settings()
    with pytest.raises(PresetError, match="e1 reads plain text"):
        PRESETS["e1"].trained_on("replies")
    with pytest.raises(PresetError, match="--loss is 'words', expected all or replies"):
        HOUSE.trained_on("words")


def test_other_roles_are_other_data(tmp_path: Path) -> None:
    """The data of an experiment are made anew if only the speakers changed; without replies none are trained on."""
    preset = replace(SMALL_PRESET, text=CHAT, piece=128)
    wanted = Choices(tokenizer="bpe:300", test_tokens=600, validation_tokens=300)
    said = [[("user", f"question {i} " * 5), ("assistant", f"answer {i % 7} " * 5)] for i in range(60)]
    keys = np.arange(60, dtype=np.uint64)

    def made(roles: tuple[str, str]) -> Any:
        chats = [[(role, text) for role, (_, text) in zip(roles, chat, strict=True)] for chat in said]
        return prepare(frame(chats).with_columns(first="text"), keys, np.arange(60), preset, wanted, tmp_path / "data")

    first, again, other = (made(roles) for roles in (("user", "assistant"),) * 2 + (("assistant", "user"),))
    assert first.digest == again.digest != other.digest
    assert first.test.ids.tolist() != other.test.ids.tolist()
    silent = made(("user", "user"))
    check_loss(silent, preset)
    with pytest.raises(PreparedError, match="the training pool has none: take a corpus of conversations"):
        check_loss(silent, preset.trained_on("replies"))


def spoken(conversations: int, seed: int = 0) -> Stream:
    """A stream of a language with structure, of which every other run of ten tokens is a reply."""
    made = stream(conversations, seed)
    classes = np.where(np.arange(made.tokens) // 10 % 2 == 1, REPLY, TEXT).astype(np.uint8)
    classes[made.ids == made.end] = UNSCORED
    return replace(made, classes=classes)


def test_n_gram_models_score_text_and_replies_apart() -> None:
    """As the library scores each token; ends of conversations count in neither."""
    pool, test = spoken(40), spoken(6, seed=1)
    pieces = pool.pieces(16)
    model = KneserNey(Grams.of(pool, pieces, test))
    model.learn(np.arange(len(pieces.rows)))
    each = kneser_ney(pool.gather(pieces.starts, pieces.sizes + 1), test, len(pool.widths))
    assert model.nats() == pytest.approx(test.by_class(each), rel=1e-3)


def test_replies_and_other_text_make_up_everything(tmp_path: Path) -> None:
    """In the record, and in the scores by conversation; what is not scored is in neither."""
    made = spoken(9)
    rng = np.random.default_rng(0)
    nats, right = rng.random(made.tokens - 1), rng.random(made.tokens - 1) < 0.5
    record = summarise(nats, right, made)
    of = made.classes[1:]
    assert record["test_tokens"] == (of != UNSCORED).sum() < len(nats)
    assert record["nats"] == pytest.approx(nats[of != UNSCORED].mean())
    assert record["replies"]["nats"] == pytest.approx(nats[of == REPLY].mean())
    assert record["replies"]["accuracy"] == pytest.approx(right[of == REPLY].mean())
    assert summarise(nats, None, stream(9))["replies"] is None
    write(tmp_path, {"ppl": 1.0}, [], nats, made)
    sums, targets = scores(tmp_path)
    assert sums.shape == targets.shape == (2, 9)
    assert sums.sum() == pytest.approx(nats[of != UNSCORED].sum())
    assert targets.sum(axis=1).tolist() == [(of == TEXT).sum(), (of == REPLY).sum()]


@pytest.mark.parametrize("network", ["cvfp", "transformer", "gru"])
def test_trained_on_replies_a_network_sees_no_other_target(network: str, tmp_path: Path) -> None:
    """Each reply target of the stream once per epoch, in as many batches as all targets take."""
    made = spoken(12)
    preset = replace(SMALL_PRESET, text=CHAT).trained_on("replies")
    text = tape(made, "cpu", reset=True, loss="replies")
    table = np.random.default_rng(0).normal(0, 0.1, (len(made.widths), 16)).astype(np.float32)
    data = Data(made, made, made, table)
    settings_ = preset.phase2
    if network == "cvfp":
        model = cvfp(preset, data, 0)
        state = phase2.begin(model, settings_, 0)
        contexts = Contexts.of(model, text, tmp_path)
        batches = phase2._batches_with_contexts(model, text, settings_, state, contexts)  # noqa: SLF001  the promise
    elif network == "transformer":
        of_run = TransformerRun(preset, data, 0, tmp_path, identity="x")
        state = phase2.start(dict(of_run.network.named_parameters()), settings_, 0)
        batches = windowed.batches(of_run.network, text, settings_, state)
    else:
        lanes = gru.lanes(text.ids, settings_.batch)
        recurrent = Recurrent(cvfp(preset, data, 0), 0, len(lanes))
        state = phase2.start(dict(recurrent.named_parameters()), settings_, 0)
        learned = text.learned
        assert learned is not None
        batches = gru.batches(recurrent, lanes, settings_, state, gru.lanes(learned, settings_.batch))
    seen = [(z, targets.numpy()) for z, targets in islice(batches, settings_.per_epoch(made.tokens - 1))]
    assert all(len(z) == len(targets) for z, targets in seen)
    found, expected = (
        np.sort(np.concatenate([targets for _, targets in seen])),
        np.sort(made.ids[1:][made.classes[1:] == REPLY]),
    )
    if network == "gru":  # its lanes drop a few tokens at their ends
        assert len(expected) * 0.9 < len(found) <= len(expected)
    else:
        assert np.array_equal(found, expected)


def other_text(record: dict[str, Any]) -> float:
    """Nats per token of what is no reply."""
    both = [(one["nats"] * one["test_tokens"], one["test_tokens"]) for one in (record, record["replies"])]
    return float((both[0][0] - both[1][0]) / (both[0][1] - both[1][1]))


@pytest.mark.parametrize("kind", [Training, TransformerRun, GruRun])
def test_a_network_that_is_trained_on_replies_knows_them_better_than_other_text(kind: Any, tmp_path: Path) -> None:
    """Replies are of another language than the rest; the validation loss is that of replies."""
    made, test = spoken(60), spoken(8, seed=1)
    made, test = (replace(one, ids=np.where(one.classes == REPLY, 7, one.ids)) for one in (made, test))
    table = np.random.default_rng(0).normal(0, 0.1, (len(made.widths), 16)).astype(np.float32)
    base = replace(SMALL_PRESET, text=CHAT, phase2=replace(SMALL_PRESET.phase2, epochs=1, steps=60))
    records = {}
    for loss in ("all", "replies"):
        run = kind(base.trained_on(loss), Data(made, test, test, table), 0, tmp_path / loss, identity=loss)
        records[loss] = run.run()
    of_all, of_replies = records["all"], records["replies"]
    assert of_replies["replies"]["nats"] == pytest.approx(of_replies["validation_loss"], rel=1e-4)
    assert of_replies["replies"]["nats"] < of_all["replies"]["nats"]
    assert other_text(of_replies) > other_text(of_all)
    assert of_replies["steps"] == of_all["steps"]


def test_a_tape_without_a_choice_trains_on_all() -> None:
    """The positions themselves, so that nothing is copied."""
    text = Tape(torch.arange(5), torch.zeros(1, dtype=torch.int64))
    at = torch.tensor([2, 0])
    assert text.trained(at) is at
    assert replace(text, learned=torch.arange(5) == 3).trained(at).tolist() == [2]
