"""Conversations per CPU second of any stage, beside another checkout of the project, and whether the signals are equal.

    python -m tests.bench.stage_speed [STAGE ...] [--corpora NAME[*COPIES] ...] [--against CHECKOUT] [--rounds N]

A corpus is chitchat, a file, or a file of ../shared/data/chat without its ending. `*10` adds nine copies, each with a
tenth of its words replaced. By default: ultrachat_small*10, chitchat and sgd.

Each measurement is a process of one thread that first measures 20 conversations and then the corpus: fit, open, measure
and merge, from raw shards on disk to signals on disk. The first is the start (imports, tables, models), the second the
speed; both are the least of rounds in turn, in CPU seconds of the process and its children, to which other work on the
machine only adds. The raw shards are those of this checkout. With `--against`, the other checkout's code measures the
same conversations, with the same Python, in shards that have all columns, as earlier checkouts need them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat"
CORPORA = ("ultrachat_small*10", "chitchat", "sgd")
START = 20
"""Number of conversations that are measured first."""
SHARE = 10
"""One word of this many is replaced in a copy."""
THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the start and of the whole corpus, and the digest of all signals."""

    start: float
    whole: float
    digest: str


def edited(draw: random.Random, content: str, pool: Sequence[str]) -> str:
    """A text with a tenth of its words replaced; everything between words stays."""
    return re.sub(r"\w+", lambda word: draw.choice(pool) if draw.randrange(SHARE) == 0 else word[0], content)


def edited_copy(conversation: dict[str, Any], number: int, pool: Sequence[str]) -> dict[str, Any]:
    """The copy of that number of a conversation; copy 0 is the conversation itself."""
    draw = random.Random(f"{number} {conversation['prompt_id']}")
    said = [
        {**message, "content": edited(draw, message["content"], pool) if number else message["content"]}
        for message in conversation["messages"]
    ]
    return {**conversation, "prompt_id": f"{conversation['prompt_id']}-{number}", "messages": said}


def copies(name: str, count: int) -> pl.DataFrame:
    """A file of conversations, or one of ../shared/data/chat without its ending, with edited copies of all of them."""
    import polars as pl

    path = CHATS / f"{name}.parquet"
    chats = pl.read_parquet(path if path.exists() else name).to_dicts()
    pool = re.findall(r"[A-Za-z]+", " ".join(message["content"] for chat in chats for message in chat["messages"]))
    rows = [edited_copy(chat, number, pool) for number in range(count) for chat in chats]
    return pl.DataFrame([{**row, "prompt": row["messages"][0]["content"]} for row in rows])


def ingested(name: str, folder: Path) -> list[Path]:
    """Raw shards of a corpus; the first has the first conversations alone, as a shard of the start."""
    from pipeline.ingest import Limits, ingest
    from pipeline.sources import find
    from pipeline.store import Store
    from stages.files import read_frame, save_frame

    base, _, count = name.partition("*")
    path = CHATS / f"{base}.parquet"
    source = str(path) if path.exists() else base
    if count:
        source = str(folder / "copies.parquet")
        copies(base, int(count)).write_parquet(source)
    store = Store(folder / "run")
    shards = [store.raw(shard["name"]) for shard in ingest(find(source), store, Limits())["shards"]]
    start = folder / "start" / "00000.parquet"
    save_frame(start, read_frame(shards[0]).head(START))
    return [start, *shards]


def with_all_columns(raw: Sequence[Path], folder: Path) -> list[Path]:
    """The same shards with the columns that are made from the messages."""
    from stages.files import read_frame, save_frame

    copies = [folder / "whole" / path.parent.name / path.name for path in raw]
    for path, copy in zip(raw, copies, strict=True):
        save_frame(copy, read_frame(path))
    return copies


def signals(use: str, raw: Sequence[Path], folder: Path) -> str:
    """Measure raw shards as a run does, and return the digest of what was written."""
    from stages import find
    from stages.files import read_frame, save_frame
    from stages.stage import FittedStage, GlobalStage

    stage, digest = find(use)(), hashlib.blake2b(digest_size=8)
    if isinstance(stage, FittedStage):
        stage.fit(raw, folder)
    measure = stage.open(folder)
    measured = [folder / path.name for path in raw]
    for path, out in zip(raw, measured, strict=True):
        batch = read_frame(path, ["id", *stage.reads])
        save_frame(out, batch.select("id").hstack(measure(batch.select(stage.reads))), {})
    if isinstance(stage, GlobalStage):
        stage.merge(raw, measured, folder)
        measured += [folder / "merged" / path.name for path in raw]
        measured += [folder / f"{kind}.parquet" for kind in stage.pairs]
    for path in measured:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def spent() -> float:
    """CPU seconds of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure_once(use: str, raw: Sequence[Path]) -> Cost:
    """Measure the start and the corpus in this process."""
    with tempfile.TemporaryDirectory() as name:
        signals(use, raw[:1], Path(name, "start"))
        start = spent()
        digest = signals(use, raw[1:], Path(name, "whole"))
        return Cost(start, spent() - start, digest)


def measured(checkout: Path, use: str, raw: Sequence[Path]) -> Cost:
    """The same in a process of one thread that runs the code of a checkout."""
    env = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", __file__, "--measure", use, *map(str, raw)]
    done = subprocess.run(command, env=env, cwd=checkout, stdout=subprocess.PIPE, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def compared(use: str, corpus: str, shards: Mapping[Path, Sequence[Path]], rounds: int) -> Iterator[str]:
    """The cells of a stage's row, from the shards that each checkout measures."""
    import pyarrow.parquet as pq

    costs = [[measured(checkout, use, raw) for checkout, raw in shards.items()] for _ in range(rounds)]
    conversations = sum(pq.read_metadata(path).num_rows for path in shards[ROOT][1:])
    seconds = [min(cost.whole for cost in each) for each in zip(*costs, strict=True)]
    starts = [min(cost.start for cost in each) for each in zip(*costs, strict=True)]
    yield from (use, corpus, f"{conversations:,}")
    for whole, start in zip(seconds, starts, strict=True):
        yield from (f"{conversations / whole:,.0f}", f"{whole / conversations * 1e3:.3f}", f"{start:.2f}")
    if len(shards) > 1:
        yield f"{seconds[1] / seconds[0]:.2f}"
        yield "equal" if len({cost.digest for each in costs for cost in each}) == 1 else "DIFFER"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("stages", nargs="*", default=["heuristics", "language"])
    parser.add_argument("--corpora", nargs="+", default=CORPORA)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS, metavar=("STAGE", "SHARD"))
    given = parser.parse_args()
    if given.measure:
        use, *shards = given.measure
        sys.stdout.write(json.dumps(vars(measure_once(use, list(map(Path, shards))))) + "\n")
        return
    head = ["stage", "corpus", "conversations", "per CPU s", "ms each", "start CPU s"]
    head += ["other per CPU s", "other ms", "other start", "times", "signals"] if given.against else []
    sys.stdout.write(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n")
    for corpus in given.corpora:
        with tempfile.TemporaryDirectory() as name:
            shards = {ROOT: ingested(corpus, Path(name))}
            if given.against:
                shards[given.against.resolve()] = with_all_columns(shards[ROOT], Path(name))
            for use in given.stages:
                sys.stdout.write(f"| {' | '.join(compared(use, corpus, shards, given.rounds))} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
