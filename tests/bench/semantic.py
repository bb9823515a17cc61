"""The stage `semantic` beside semhash, and beside well-kept indices: `python -m tests.bench.semantic [--peer PYTHON]`.

Texts are the first different messages of ../shared/data/chat. `--peer` names the Python of a venv with semhash 0.5,
model2vec, usearch, faiss-cpu, hnswlib and polars. Each is one process with one thread. semhash gets the stage's static
vectors as a model of model2vec, and looks for cosines of 0.9 in its usearch index; the indices get the stage's vectors
as 32-bit floats, and give the 32 nearest of each. Printed are CPU seconds, and recall: of the pairs at 0.9 that brute
force finds over the same vectors, the share that the tool finds; for an index, of those that are among the 32 nearest
of one of their ends.

`--agreement` prints how the static vectors agree with all-MiniLM-L6-v2: of the 10 nearest first prompts by the encoder,
the share that is among the 10 nearest by the static vectors; and the mean cosine by the encoder of the pairs at several
cosines of the static vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import polars as pl

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat"
FLOOR, NEAREST = 0.9, 32
AGREED = ("ultrachat_small", "gpteacher", "mtbench101", "oasst_100trees", "arena1k", "sgd", "hh_rlhf_harmless_test")


def messages(count: int) -> pl.Series:
    """Different messages of at least three words."""
    parts = [pl.read_parquet(path, columns=["messages"]) for path in sorted(CHATS.glob("*.parquet"))]
    texts = pl.concat([part["messages"].explode().struct.field("content") for part in parts]).drop_nulls()
    return texts.filter(texts.str.count_matches(r"\w+") >= 3).unique(maintain_order=True).sample(count, seed=0)


def pairs_of(near: list[Any], keep: Any) -> set[tuple[int, int]]:
    """Unordered pairs of a list of neighbours of each row."""
    return {
        (min(i, int(j)), max(i, int(j)))
        for i, (others, cosines) in enumerate(near)
        for j, cosine in zip(others, cosines, strict=True)
        if int(j) not in {i, -1} and cosine >= keep
    }


def brute(vectors: Any) -> set[tuple[int, int]]:
    """All pairs at the floor, of float vectors of length 1."""
    found: set[tuple[int, int]] = set()
    for at in range(0, len(vectors), 500):
        one, other = np.nonzero(vectors[at : at + 500] @ vectors.T >= FLOOR)
        found.update((int(i + at), int(j)) for i, j in zip(one, other, strict=True) if j > i + at)
    return found


def stage(folder: Path) -> dict[str, Any]:
    """Encoding and search by the stage, and what brute force finds over its vectors."""
    from stages.semantic import pairs
    from stages.semantic.vectors import load

    texts = pl.read_parquet(folder / "texts.parquet")["text"]
    encode = load("")
    encode(texts[:10])
    begin = time.process_time()
    vectors = encode(texts)
    encoded = time.process_time()
    order = np.random.default_rng(0).permutation(len(vectors))
    found = pairs.find(vectors, order, FLOOR, 256)
    searched = time.process_time()
    floats = vectors.astype(np.float32)
    floats /= np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-9)
    np.save(folder / "vectors.npy", floats)
    truth = brute(floats)
    np.save(folder / "truth.npy", np.array(sorted(truth), np.int64))
    got = set(map(tuple, found.rows.tolist()))
    return {
        "encode": encoded - begin,
        "search": searched - encoded,
        "pairs": len(truth),
        "recall": len(got & truth) / len(truth),
        "crowded": int(found.crowded.sum()),
    }


def semhash(folder: Path) -> dict[str, Any]:
    """The same by semhash."""
    from model2vec import StaticModel
    from semhash import SemHash
    from tokenizers import Tokenizer

    texts = pl.read_parquet(folder / "texts.parquet")["text"].to_list()
    arrays, tokenizer = np.load(folder / "pieces.npy"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = StaticModel(vectors=arrays.astype(np.float32), tokenizer=tokenizer, normalize=True)
    begin = time.process_time()
    made = SemHash.from_records(texts, model=model)
    indexed = time.process_time()
    near = made.index.query_threshold(made.index.vectors, threshold=FLOOR)
    searched = time.process_time()
    vectors = np.asarray(made.index.vectors, np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    truth, got = brute(vectors), pairs_of(near, FLOOR)
    return {
        "encode": indexed - begin,
        "search": searched - indexed,
        "pairs": len(truth),
        "recall": len(got & truth) / len(truth),
    }


def index(folder: Path, kind: str) -> dict[str, Any]:
    """Building an index of the stage's vectors and asking for the nearest of each."""
    vectors = np.load(folder / "vectors.npy")
    every = np.load(folder / "truth.npy")
    near = np.bincount(every.ravel(), minlength=len(vectors))
    truth = set(map(tuple, every[near[every].min(axis=1) < NEAREST].tolist()))
    begin = time.process_time()
    if kind == "usearch":
        from usearch.index import Index

        made = Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
        made.add(np.arange(len(vectors)), vectors, threads=1)
        found = made.search(vectors, NEAREST, threads=1)
        ids, cosines = found.keys, 1 - found.distances
    elif kind == "hnswlib":
        import hnswlib

        made = hnswlib.Index(space="ip", dim=vectors.shape[1])
        made.init_index(max_elements=len(vectors), ef_construction=128, M=16)
        made.set_num_threads(1)
        made.add_items(vectors)
        made.set_ef(64)
        ids, distances = made.knn_query(vectors, k=NEAREST)
        cosines = 1 - distances
    else:
        import faiss

        faiss.omp_set_num_threads(1)
        cells = int(np.sqrt(8 * len(vectors)))
        flat = faiss.IndexFlatIP(vectors.shape[1])
        if kind == "faiss IVF":
            made = faiss.IndexIVFFlat(flat, vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
            made.train(vectors)
            made.nprobe = 8
        else:
            made = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
            made.hnsw.efConstruction, made.hnsw.efSearch = 128, 64
        made.add(vectors)
        cosines, ids = made.search(vectors, NEAREST)
    spent = time.process_time() - begin
    got = pairs_of(list(zip(ids, cosines, strict=True)), FLOOR - 1e-6)
    return {"search": spent, "recall": len(got & truth) / len(truth)}


def agreement() -> None:
    """Print how static vectors agree with the encoder."""
    from stages.semantic.vectors import load

    some = []
    for name in AGREED:
        table = pl.read_parquet(CHATS / f"{name}.parquet", columns=["messages"])
        first = pl.element().filter(pl.element().struct.field("role") == "user").struct.field("content")
        prompts = table.sample(min(table.height, 700), seed=1)["messages"].list.eval(first).list.first().drop_nulls()
        some.append(prompts)
    texts = pl.concat(some).unique(maintain_order=True)
    texts = texts.filter(texts != "")
    near = []
    for model in ("", "minilm"):
        vectors = load(model)(texts).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        near.append(vectors @ vectors.T)
        np.fill_diagonal(near[-1], -1)
    best = [np.argsort(-each, axis=1, kind="stable")[:, :10] for each in near]
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*best, strict=True)])
    sys.stdout.write(f"{len(texts):,} prompts: {share:.3f} of the 10 nearest by the encoder are by static vectors\n")
    upper = np.triu_indices(len(texts), 1)
    static, encoder = near[0][upper], near[1][upper]
    for cosine in (0.8, 0.85, 0.9, 0.95):
        both = encoder[static >= cosine]
        sys.stdout.write(f"at {cosine}: {len(both):,} pairs, mean cosine by the encoder {both.mean():.3f}\n")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--peer")
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.agreement:
        agreement()
        return
    if given.part:
        part, folder = given.part[0], Path(given.part[1])
        parts = {"stage": stage, "semhash": semhash}
        sys.stdout.write("\n" + json.dumps(parts[part](folder) if part in parts else index(folder, part)))
        return

    def run(python: str, part: str) -> Any:
        command = [python, __file__, "--part", part, name]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, cwd=name, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        said = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        sys.stdout.write(f"{part}: {said}\n")
        sys.stdout.flush()
        return found

    with tempfile.TemporaryDirectory() as name:
        messages(given.texts).to_frame("text").write_parquet(Path(name, "texts.parquet"))
        run(sys.executable, "stage")
        if given.peer:
            from stages.semantic.vectors import STATIC, files

            np.save(Path(name, "pieces.npy"), np.load(STATIC)["pieces"])
            Path(name, "tokenizer.json").write_bytes(files("")[1].read_bytes())
            for part in ("semhash", "usearch", "faiss IVF", "faiss HNSW", "hnswlib"):
                run(given.peer, part)


if __name__ == "__main__":
    main()
