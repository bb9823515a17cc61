"""Recall, precision and rate of the stage `pii`, beside Presidio: `python -m tests.bench.pii [--presidio PYTHON]`.

Reads ../shared/data/pii, 1,500 synthetic sentences of presidio-research. An item is found if a span of its kind
overlaps it, and a span is false if it overlaps no item of its kind. The rate is of the messages of ultrachat_small, by
one thread. Presidio's recognizers of the same five kinds are asked one by one, without a language model and its words
of context, and count at any score and at a score of at least 0.5; where one span lies inside another of its kind, the
longest counts. `--presidio` names the Python of a venv with presidio-analyzer and polars. `--read CORPUS` prints what
is found in a corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"

import polars as pl

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
KINDS = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "IP_ADDRESS": "ip", "CREDIT_CARD": "card"}
KINDS["IBAN_CODE"] = "iban"
Found = list[list[tuple[int, int, str]]]


def ours(texts: Sequence[str]) -> Found:
    """Spans of the stage, screened by columns as the stage does."""
    from stages.pii import Pii
    from stages.pii.find import SCREEN, spans

    passed = pl.Series(texts, dtype=pl.String).str.contains(SCREEN)
    return [
        [(span.start, span.stop, span.kind) for span in spans(text, Pii().regions)] if there else []
        for text, there in zip(texts, passed, strict=True)
    ]


def presidio(texts: Sequence[str], floor: float) -> Found:
    """Spans of Presidio's recognizers with at least this score."""
    from presidio_analyzer import predefined_recognizers as known

    recognizers = [getattr(known, f"{name}Recognizer")() for name in ("Email", "Phone", "Ip", "CreditCard", "Iban")]
    found = []
    for text in texts:
        results = [one for each in recognizers for one in each.analyze(text, each.supported_entities, None) or ()]
        spans = sorted({(one.start, one.end, KINDS[one.entity_type]) for one in results if one.score >= floor})
        inside = {a for a in spans for b in spans if a != b and a[2] == b[2] and b[0] <= a[0] and a[1] <= b[1]}
        found.append([span for span in spans if span not in inside])
    return found


def rows(name: str, found: Found, seconds: float) -> Iterator[str]:
    """A row of the table for each kind."""
    hits, wanted, false = Counter[str](), Counter[str](), Counter[str]()
    table = pl.read_parquet(DATA / "pii" / "presidio_synth_v2.parquet")
    for spans, labelled in zip(found, table["spans"].to_list(), strict=True):
        known = [(one["start"], one["end"], KINDS[one["type"]]) for one in labelled if one["type"] in KINDS]
        wanted.update(kind for *_, kind in known)
        hits.update(kind for a, b, kind in known if any(k == kind and s < b and a < e for s, e, k in spans))
        false.update(k for s, e, k in spans if not any(k == kind and s < b and a < e for a, b, kind in known))
    for kind in KINDS.values():
        precision = hits[kind] / max(1, hits[kind] + false[kind])
        yield f"| {name} | {kind} | {hits[kind]} of {wanted[kind]} | {false[kind]} | {precision:.3f} | {seconds:.2f} |"


def measured(tool: str) -> tuple[Found, float]:
    """Spans in the labelled sentences, and CPU seconds for ultrachat_small."""
    texts = pl.read_parquet(DATA / "pii" / "presidio_synth_v2.parquet")["text"].to_list()
    find = ours if tool == "refine" else lambda some: presidio(some, float(tool))
    found = find(texts)
    chat = pl.read_parquet(DATA / "chat" / "ultrachat_small.parquet").explode("messages")["messages"]
    contents = chat.struct.field("content").to_list()
    start = time.process_time()
    find(contents)
    return found, time.process_time() - start


def read(corpus: str) -> None:
    """Print what is found in a corpus, with what stands around it."""
    path = DATA / "chat" / f"{corpus}.parquet"
    contents = (
        pl.read_parquet(path if path.exists() else corpus).explode("messages")["messages"].struct.field("content")
    )
    for text, spans in zip(contents, ours(contents.to_list()), strict=True):
        for start, stop, kind in spans:
            around = text[max(0, start - 40) : start], text[start:stop], text[stop : stop + 20]
            sys.stdout.write(f"{kind}: {' | '.join(map(repr, around))}\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--presidio")
    parser.add_argument("--read")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        sys.stdout.write(json.dumps(measured(given.measure)))
        return
    if given.read:
        read(given.read)
        return
    sys.stdout.write(
        "| finder | kind | found | false | precision | CPU s for UltraChat's messages |\n|" + " --- |" * 6 + "\n"
    )
    tools = {"refine": sys.executable, **({"0.0": given.presidio, "0.5": given.presidio} if given.presidio else {})}
    for tool, python in tools.items():
        command = [python, __file__, "--measure", tool]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, cwd=tempfile.gettempdir(), stdout=subprocess.PIPE, check=True)
        name = tool if tool == "refine" else f"Presidio, score {tool}"
        sys.stdout.writelines(f"{line}\n" for line in rows(name, *json.loads(done.stdout)))


if __name__ == "__main__":
    main()
