"""Embeddings: PPMI-SVD as its paper defines it, GPT-2's from files, and never another kind than was asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.conftest import SHARED
from trainer.prepare import ppmi
from trainer.prepare.ppmi import EmbeddingsError, ppmi_svd, random
from trainer.prepare.pretrained import from_file, gpt2

Ids = NDArray[np.int32]


def corpus(size: int = 40, tokens: int = 3000, seed: int = 0) -> tuple[Ids, NDArray[np.int64]]:
    """Ids with structure: each is likely followed by the next one; conversations of 50."""
    draw = np.random.default_rng(seed)
    steps = np.where(draw.random(tokens) < 0.6, 1, draw.integers(0, size, tokens))
    return (np.cumsum(steps) % size).astype(np.int32), np.arange(0, tokens, 50)


def slow(ids: Ids, starts: NDArray[np.int64], size: int, window: int) -> NDArray[np.float64]:
    """The PPMI matrix by the book, pair by pair."""
    counts: Counter[tuple[int, int]] = Counter()
    weights: dict[tuple[int, int], float] = {}
    for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        for i in range(begin, end):
            for j in range(max(begin, i - window), min(end, i + window + 1)):
                if i != j:
                    pair = int(ids[i]), int(ids[j])
                    counts[pair] += 1
                    weights[pair] = weights.get(pair, 0.0) + 1 / abs(i - j)
    dense = np.zeros((size, size))
    for (i, j), weight in weights.items():
        dense[i, j] = weight
    words, contexts = dense.sum(1) / dense.sum(), dense.sum(0) ** 0.75 / (dense.sum(0) ** 0.75).sum()
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.maximum(np.log(dense / dense.sum() / np.outer(words, contexts)), 0)
    return found


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_it_is_the_svd_of_ppmi(window: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is U S^0.5 of the slow PPMI matrix, up to one scale, whatever the chunks."""
    monkeypatch.setattr(ppmi, "CHUNK", chunk)
    monkeypatch.setattr(ppmi, "WINDOW", window)
    ids, starts = corpus()
    made = ppmi_svd(ids, starts, 40, 5)
    u, s, _ = np.linalg.svd(slow(ids, starts, 40, window))
    wanted = u[:, :5] * np.sqrt(s[:5])
    wanted *= np.sign(wanted[np.argmax(np.abs(wanted), axis=0), np.arange(5)])
    wanted *= ppmi.STD / wanted.std()
    assert np.abs(made.table - wanted).max() < 1e-5
    assert made.table.std() == pytest.approx(0.14, rel=1e-5)


def test_large_matrices_are_decomposed_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Krylov method finds what the whole decomposition finds: products of rows agree."""
    draw = np.random.default_rng(1)
    ids = np.minimum(draw.zipf(1.3, 60_000), 1500).astype(np.int32) - 1
    starts = np.array([0])
    krylov = ppmi_svd(ids, starts, 1500, 16)
    monkeypatch.setattr(ppmi, "BLOCKS", 10_000)
    whole = ppmi_svd(ids, starts, 1500, 16)
    assert not np.array_equal(krylov.table, whole.table)
    seen = np.isin(np.arange(1500), ids)
    one, other = krylov.table[seen] @ krylov.table[seen].T, whole.table[seen] @ whole.table[seen].T
    assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other)


def test_the_same_ids_give_the_same_table() -> None:
    """Bit for bit; the seed moves only tokens that do not occur, and these are small."""
    ids, starts = corpus()
    made, again, other = (ppmi_svd(ids, starts, 50, 8, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(made.table, again.table)
    assert np.array_equal(made.table[:40], other.table[:40])
    assert not np.array_equal(made.table[40:], other.table[40:])
    assert 0.005 < made.table[40:].std() < 0.03
    assert made.tokens_seen == 3000
    assert "10 tokens that do not occur" in made.description


def test_conversations_are_no_contexts_of_each_other() -> None:
    """What stands on both sides of a start never counts as a pair."""
    ids = np.array([0, 1, 2, 3] * 50, np.int32)
    apart = ppmi._counts(ids, np.arange(0, 200, 2), 4).toarray()  # noqa: SLF001  the counts are the point
    assert apart[0, 1] == apart[2, 3] == 50
    assert apart[1, 2] == apart[0, 3] == 0
    assert ppmi._counts(ids, np.array([0]), 4).toarray()[1, 2] == 50  # noqa: SLF001


def test_a_corpus_of_few_words_fills_few_columns() -> None:
    """Fewer tokens than columns: the rest is zero, nothing is NaN."""
    made = ppmi_svd(np.array([0, 1, 0, 2, 1, 0], np.int32), np.array([0]), 10, 6)
    assert np.isfinite(made.table).all()
    assert not made.table[:3, 3:].any()


def test_ids_that_cannot_be_embedded_are_said() -> None:
    """No two tokens side by side; an id above the vocabulary."""
    with pytest.raises(EmbeddingsError, match="too few for embeddings"):
        ppmi_svd(np.array([1, 2], np.int32), np.array([0, 1]), 5, 2)
    with pytest.raises(EmbeddingsError, match="the largest id is 7"):
        ppmi_svd(np.array([1, 7], np.int32), np.array([0]), 5, 2)


def wte(width: int = 6) -> NDArray[np.float32]:
    """A table with GPT-2's rows."""
    return np.random.default_rng(0).normal(0, 0.14, (50257, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["wte.weight", "transformer.wte.weight"])
def test_gpt2_is_read_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    """safetensors, a folder with them, torch's and numpy's files give the same table."""
    table = wte()
    save_file({name: table, "wpe.weight": table[:3]}, tmp_path / "model.safetensors")
    torch.save({name: torch.from_numpy(table)}, tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", table)
    for path in (tmp_path / "model.safetensors", tmp_path, tmp_path / "a.bin", tmp_path / "a.npy"):
        made = gpt2(path)
        assert np.array_equal(made.table, table)
        assert made.tokens_seen == -1


def test_gpt2_that_is_not_there_is_an_error_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never another kind in its place: one sentence with the fix, whatever is wrong."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, local_files_only: bool = False, **__: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(
        EmbeddingsError, match=r"cannot be downloaded \(ConnectionError: no route\): name a file"
    ) as error:
        gpt2()
    assert "\n" not in str(error.value)
    with pytest.raises(EmbeddingsError, match="is not a file of embeddings"):
        gpt2(tmp_path / "none.npy")
    np.save(tmp_path / "small.npy", wte()[:9])
    with pytest.raises(EmbeddingsError, match="expected GPT-2's 50,257 rows"):
        gpt2(tmp_path / "small.npy")
    save_file({"other": wte()[:9]}, tmp_path / "other.safetensors")
    with pytest.raises(EmbeddingsError, match=r"it has the tensors other"):
        gpt2(tmp_path / "other.safetensors")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_runs_code_does_not_run_it(tmp_path: Path) -> None:
    """A pickle is refused before anything of it is called, in torch's format and in numpy's."""
    hostile = Hostile(tmp_path / "was-here")
    torch.save({"wte.weight": hostile}, tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([hostile], object), allow_pickle=True)
    for name in ("evil.pt", "evil.npy"):
        with pytest.raises(EmbeddingsError, match="cannot be read as embeddings"):
            gpt2(tmp_path / name)
    assert not hostile.path.exists()


def test_a_file_of_embeddings_holds_a_matrix_of_numbers(tmp_path: Path) -> None:
    """Another shape, NaN, huge numbers: each is an error."""
    np.save(tmp_path / "e.npy", wte()[:9])
    assert np.array_equal(from_file(tmp_path / "e.npy").table, wte()[:9])
    bad = (
        (np.zeros(3), "expected a matrix of numbers"),
        (np.full((2, 2), np.nan), "not finite, or at least"),
        (np.full((2, 2), 1e30), "not finite, or at least"),
    )
    for table, said in bad:
        np.save(tmp_path / "bad.npy", table)
        with pytest.raises(EmbeddingsError, match=said):
            from_file(tmp_path / "bad.npy")


def test_random_embeddings_have_their_deviation() -> None:
    """By seed, with the standard deviation asked for, and they have seen nothing."""
    made = random(5000, 16, 0.02, 3)
    assert made.table.std() == pytest.approx(0.02, rel=0.02)
    assert np.array_equal(made.table, random(5000, 16, 0.02, 3).table)
    assert made.tokens_seen == 0


@pytest.fixture(scope="module")
def bench() -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float32]]:
    """The reference corpus's ids, and the embeddings that came with them."""
    path = SHARED / "bench" / "cvfp" / "ids.npz"
    if not path.is_file():
        pytest.skip("the reference token ids (../shared/bench) are not on this machine")
    with np.load(path) as file:
        found = {name: file[name].astype(np.int64) for name in ("train", "val", "train_starts")}
        return found, file["embeddings"]


def agreement(table: NDArray[np.float32], other: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
    """Share of the ten nearest neighbours, by cosine, that two tables have in common."""
    near = []
    for one in (table[rows], other[rows]):
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        near.append(np.argsort(-(unit @ unit.T), axis=1)[:, 1:11])
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]))


def test_neighbours_are_those_of_the_reference(bench: tuple[dict[str, NDArray[np.int64]], NDArray[np.float32]]) -> None:
    """On the 500 commonest tokens neighbours agree with the reference's, made from 15 times the text; chance is 2 %."""
    found, reference = bench
    ids, starts = found["train"].astype(np.int32), found["train_starts"]
    made = ppmi_svd(ids, starts[starts < len(ids)], 8192, 128)
    common = np.argsort(-np.bincount(ids, minlength=8192), kind="stable")[:500]
    assert agreement(made.table, reference, common) > 0.2
    assert agreement(random(8192, 128).table, reference, common) < 0.05


def test_they_predict_the_next_token(bench: tuple[dict[str, NDArray[np.int64]], NDArray[np.float32]]) -> None:
    """A linear map from a token's embedding to the next one's ranks held-out next tokens better than random ones do."""
    found, _ = bench
    ids, starts = found["train"].astype(np.int32), found["train_starts"]
    tables = ppmi_svd(ids, starts[starts < len(ids)], 8192, 128).table, random(8192, 128, 0.14).table
    ranks = []
    for table in tables:
        x, y = table[found["train"][:-1]], table[found["train"][1:]]
        moved = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(128), x.T @ y)
        scores = table[found["val"][:2000]] @ moved @ table.T
        ranks.append(np.median((scores > scores[np.arange(2000), found["val"][1:2001]][:, None]).sum(axis=1)))
    assert ranks[0] < 0.5 * ranks[1]
