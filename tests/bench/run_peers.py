"""Filter or deduplicate with another system: `python run_peers.py TOOL STEP DOCUMENTS FOLDER`, in a venv that has it.

DOCUMENTS is a file of JSON lines with `id` and `text`, the contents of a conversation joined by newlines, since none of
these systems reads `messages`. Each step reads all documents in one process and writes what it keeps to FOLDER/kept.

datatrove, filter: the Gopher repetition, Gopher quality, C4 and FineWeb quality filters with their defaults, each with
its writer of excluded documents. datatrove, dedup: MinHash of word 5-grams, 16 bands of 8, in its four steps.
Data-Juicer, filter: its eight filters of text that need no download; dedup: MinHash of word 5-grams, 128 permutations
at 0.75. text-dedup, dedup: MinHash of word 5-grams, 16 bands of 8.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def datatrove(step: str, documents: Path, folder: Path) -> None:
    """The blocks of FineWeb's pipeline that fit plain documents."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import filters
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    reader = JsonlReader(str(documents.parent), glob_pattern=documents.name)
    kinds = ("GopherRepetitionFilter", "GopherQualityFilter", "C4QualityFilter", "FineWebQualityFilter")
    if step == "filter":
        blocks = [getattr(filters, kind)(exclusion_writer=JsonlWriter(f"{folder}/out/{kind}")) for kind in kinds]
        steps = [[reader, *blocks, JsonlWriter(f"{folder}/kept")]]
    else:
        config = minhash.MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
        signatures, buckets, clusters = (f"{folder}/{name}" for name in ("signatures", "buckets", "clusters"))
        steps = [
            [reader, minhash.MinhashDedupSignature(signatures, config)],
            [minhash.MinhashDedupBuckets(signatures, buckets, config=config)],
            [minhash.MinhashDedupCluster(buckets, clusters, config=config)],
            [reader, minhash.MinhashDedupFilter(clusters), JsonlWriter(f"{folder}/kept")],
        ]
    for at, blocks in enumerate(steps):
        tasks = 16 if step == "dedup" and at == 1 else 1  # one task a bucket
        LocalPipelineExecutor(blocks, tasks=tasks, workers=1, logging_dir=f"{folder}/logs/{at}").run()


def data_juicer(step: str, documents: Path, folder: Path) -> None:
    """`dj-process` with its filters of text, without a tokenizer, since that is downloaded."""
    filters = [
        {"alphanumeric_filter": {"tokenization": False}},
        {"average_line_length_filter": {}},
        {"character_repetition_filter": {}},
        {"maximum_line_length_filter": {}},
        {"special_characters_filter": {}},
        {"text_length_filter": {}},
        {"words_num_filter": {"tokenization": False}},
        {"word_repetition_filter": {"tokenization": False}},
    ]
    dedup = {"document_minhash_deduplicator": {"window_size": 5, "num_permutations": 128, "jaccard_threshold": 0.75}}
    config = {
        "project_name": "bench",
        "dataset_path": str(documents),
        "export_path": f"{folder}/kept/kept.jsonl",
        "np": 1,
        "open_tracer": False,
        "process": filters if step == "filter" else [dedup],
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    subprocess.run([Path(sys.executable).with_name("dj-process"), "--config", path], check=True)


def text_dedup(step: str, documents: Path, folder: Path) -> None:
    """Its MinHash."""
    if step != "dedup":
        raise SystemExit("text-dedup has no filters")
    options = {"path": "json", "data_files": documents, "split": "train", "cache_dir": folder / "cache"}
    options |= {"output": folder / "kept", "column": "text", "batch_size": 10000, "num_proc": 1, "num_perm": 128}
    options |= {"ngram": 5, "b": 16, "r": 8, "hash_func": "xxh3"}
    flat = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, "-m", "text_dedup.minhash", *flat], check=True)


if __name__ == "__main__":
    tool, step, documents, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    {"datatrove": datatrove, "data-juicer": data_juicer, "text-dedup": text_dedup}[tool](step, documents, folder)
