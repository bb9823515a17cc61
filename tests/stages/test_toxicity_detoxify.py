"""Detoxify as the second model: its real code on a small checkpoint, and errors for bad checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from stages.stage import MESSAGES, MissingModelError, StageParameterError
from stages.toxicity import Toxicity, detoxify

WORDS = ("you are a stupid idiot i hope that die , the weather is nice today", "and hate everybody hates . !")
CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
INSULT = "You are a stupid idiot and everybody hates you."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the configuration and the tokenizer of a tiny BERT."""
    folder = tmp_path_factory.mktemp("config")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(" ".join(WORDS).split()))]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(tokens))
    from transformers import BertConfig  # here: it takes seconds, in each worker that collects the tests

    small = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    small.vocab_size = len(tokens)
    small.save_pretrained(folder)
    return folder


def untrained(config: Path) -> Any:
    """A network of that configuration."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig.from_pretrained(config, num_labels=6))


def contents(config: Path, **arguments: Any) -> dict[str, Any]:
    """The content of a Detoxify checkpoint: its training configuration and a state dict."""
    torch.manual_seed(0)
    network = untrained(config)
    known: dict[str, Any] = {"model_type": "bert-base-uncased", "model_name": "BertForSequenceClassification"}
    known |= {"tokenizer_name": "BertTokenizer", "num_classes": 6}
    arch = {"arch": {"args": {**known, **arguments}}, "dataset": {"args": {"classes": CLASSES}}}
    return {"config": arch, "state_dict": network.state_dict()}


@pytest.fixture(scope="module")
def checkpoint(config: Path) -> Path:
    """A small checkpoint in Detoxify's layout."""
    path = config.parent / "small.ckpt"
    torch.save(contents(config), path)
    return path


def test_scores_are_those_of_the_checkpoint(config: Path, checkpoint: Path) -> None:
    """Detoxify's own code with the checkpoint's weights: equal to the network run by hand, for any batch."""
    reader = detoxify.load(checkpoint, str(config))
    network = untrained(config)
    network.load_state_dict(contents(config)["state_dict"])
    network.train(mode=False)
    tokenizer = Tokenizer.from_file(str(config / "tokenizer.json"))
    texts = ["you are a stupid idiot", "the weather is nice today , and that is nice", "die !"] * 15
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        assert 1 not in ids[0]  # every word is in the vocabulary: an empty tokenizer would see [UNK] alone
        with torch.inference_mode():
            expected.append(float(torch.sigmoid(network(input_ids=ids).logits[0, 0])))
    assert len({round(score, 6) for score in expected[:3]}) == 3
    np.testing.assert_allclose(reader(texts), expected, atol=1e-5)
    np.testing.assert_allclose(reader(texts[:1]), expected[:1], atol=1e-5)


def test_it_decides_what_words_leave_uncertain(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With a checkpoint the insult's score is Detoxify's, an inoffensive message's stays the fast models'."""
    stage = Toxicity(model=str(checkpoint), config=str(config))
    said = [[{"role": "user", "content": text}] for text in (INSULT, "The weather is nice today and the sea is calm.")]
    found = stage.open(tmp_path)(pl.DataFrame({"messages": pl.Series(said, dtype=MESSAGES)}))
    reader = detoxify.load(checkpoint, str(config))
    assert found["toxicity_by"].to_list() == ["detoxify", "fast"]
    assert found["toxicity"][0] == pytest.approx(reader([INSULT.lower()])[0], abs=1e-5)


def test_a_checkpoint_that_changes_is_another_stage(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The digest covers the checkpoint's content and the configuration's, not its name alone."""
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    stage = Toxicity(model=str(copy), config=str(config))
    before = stage.digest()
    assert copy in stage.models()
    assert config / "tokenizer.json" in stage.models()
    copy.write_bytes(checkpoint.read_bytes() + b"\0")
    assert stage.digest() != before


def test_a_release_in_the_cache_is_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes a release from torch's hub cache if its configuration and tokenizer are cached; else none."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / detoxify.RELEASES["original"][0]
    place.parent.mkdir(parents=True)
    monkeypatch.setattr(detoxify, "has_configuration", lambda name: name == "original")
    assert detoxify.checkpoint("auto") is None
    before = Toxicity(model="auto").digest()
    place.write_bytes(checkpoint.read_bytes())
    assert detoxify.checkpoint("auto") == detoxify.checkpoint("original") == place
    assert Toxicity(model="auto").digest() != before
    monkeypatch.setattr(detoxify, "has_configuration", lambda _: False)
    assert detoxify.checkpoint("auto") is None


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Touch a file."""
        return Path.touch, (Path("hostile-was-here"),)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused(
    kind: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code in a checkpoint never runs; the error names the file and what was expected."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    elif kind == "torch":
        torch.save({**contents(config), "extra": Hostile()}, path)
    else:
        path.write_bytes(b"no checkpoint" if kind == "text" else b"")
    with pytest.raises(StageParameterError, match=r"bad\.ckpt .*expected a file with `config` and `state_dict`"):
        detoxify.load(path, str(config))
    assert not (tmp_path / "hostile-was-here").exists()


def test_only_known_architectures_are_built(config: Path, tmp_path: Path) -> None:
    """A checkpoint cannot name an arbitrary class of transformers."""
    torch.save(contents(config, model_name="pipeline"), tmp_path / "odd.ckpt")
    with pytest.raises(StageParameterError, match=r"odd\.ckpt asks for"):
        detoxify.load(tmp_path / "odd.ckpt", str(config))


def test_a_checkpoint_with_missing_weights_is_refused(config: Path, tmp_path: Path) -> None:
    """Missing weights would be drawn at random; they are refused."""
    whole = contents(config)
    del whole["state_dict"]["classifier.weight"]
    torch.save(whole, tmp_path / "part.ckpt")
    with pytest.raises(StageParameterError, match=r"part\.ckpt lacks 1 weights, such as classifier\.weight"):
        detoxify.load(tmp_path / "part.ckpt", str(config))


def test_an_empty_tokenizer_is_refused(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A folder without a tokenizer gives an error, not scores of empty text."""
    (tmp_path / "config.json").write_bytes((config / "config.json").read_bytes())
    with pytest.raises((StageParameterError, MissingModelError), match=r"tokenizer"):
        detoxify.load(checkpoint, str(tmp_path))


def test_a_model_that_is_not_there_is_named() -> None:
    """A path that does not exist is refused before any work, with the accepted values."""
    with pytest.raises(
        MissingModelError, match=r"'nowhere.ckpt' is neither a file nor one of fast, careful, auto, unbiased"
    ):
        Toxicity(model="nowhere.ckpt").models()


def test_it_runs_where_torch_has_a_gpu(config: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network and texts are moved there: torch's device `meta` takes its place, and refuses to give a score back."""
    monkeypatch.setattr("stages.toxicity.detoxify.device", lambda: "meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        detoxify.load(checkpoint, str(config))([INSULT])
    assert Toxicity(model=str(checkpoint)).uses_gpu
    assert not Toxicity().uses_gpu
