"""Files of a stage's folder: damage to them is found and named, and a full disk is an error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages
from stages import files, ngram
from stages.dedup.against import Against
from stages.files import CONVERSATIONS, footer, read_frame, save_conversations, save_frame
from stages.ngram import counts
from stages.ppl import Perplexity
from stages.stage import RAW, CorruptInputError, FittedStage, GlobalStage, Stage
from tests import strategies
from tests.conftest import ROOT, chat

Messages = list[dict[str, str]]
WHOLE = strategies.raw([chat(i, 2 + i % 5)["messages"] for i in range(160)])
GLOBAL = [name for name in stages.BUILTIN if issubclass(stages.find(name), GlobalStage)]


@given(made=strategies.corpora, names=st.permutations(RAW.names()), size=st.integers(1, len(RAW)), asked=st.booleans())
@settings(max_examples=40)
def test_conversations_are_read_as_they_were_saved(
    made: list[Messages], names: list[str], size: int, *, asked: bool
) -> None:
    """All columns, or some in any order; also a prompt that no message holds. The file holds each text once."""
    frame = strategies.raw(made)
    frame = frame if asked else frame.with_columns(prompt=pl.col("prompt") + "?")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.parquet"
        save_conversations(path, frame, {"more": "1"})
        assert read_frame(path).equals(frame)
        assert read_frame(path, names[:size]).equals(frame[names[:size]])
        assert footer(path) == {CONVERSATIONS: "2", "more": "1"}
        stored = pq.read_table(path)
    assert "text" not in stored.column_names
    assert stored["prompt"].null_count == (len(frame) if asked else 0)


def flip(path: Path) -> None:
    """A flipped byte in the middle of a file, of a Parquet file in each column."""
    content = bytearray(path.read_bytes())
    places = [len(content) // 2]
    if path.suffix == ".parquet":
        group = pq.read_metadata(path).row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        begins = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        places = [begin + column.total_compressed_size - 1 for begin, column in zip(begins, columns, strict=True)]
    for place in places:
        content[place] ^= 0x5A
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    """A file's first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = pytest.mark.parametrize("damage", [flip, cut, Path.unlink])


def measured(stage: Stage, folder: Path) -> tuple[list[Path], list[Path]]:
    """Raw and measured shards of four times forty conversations."""
    raw = []
    for i in range(4):
        raw.append(folder / "raw" / f"{i:05d}.parquet")
        save_frame(raw[-1], WHOLE[40 * i : 40 * i + 40])
    if isinstance(stage, FittedStage):
        stage.fit(raw, folder)
    opened = stage.open(folder)
    for path in raw:
        batch = read_frame(path)
        save_frame(folder / path.name, batch.select("id").hstack(opened(batch.select(stage.reads))))
    return raw, [folder / path.name for path in raw]


@pytest.mark.parametrize("name", GLOBAL)
def test_a_flipped_byte_in_what_a_merge_wrote_is_found(name: str, tmp_path: Path) -> None:
    """Merged shards have page checksums and plain types; one without rows has no row group."""
    stage = stages.find(name)()
    assert isinstance(stage, GlobalStage)
    raw, signals = measured(stage, tmp_path)
    save_frame(raw[3], WHOLE[:0])
    save_frame(signals[3], read_frame(signals[3])[:0])
    stage.merge(raw, signals, tmp_path)
    path = tmp_path / "merged" / raw[1].name
    for field in pq.read_schema(path):
        assert not pa.types.is_large_string(field.type), field
        assert not pa.types.is_string_view(field.type), field
        assert not pa.types.is_large_list(field.type), field
    assert pq.read_metadata(tmp_path / "merged" / raw[3].name).num_row_groups == 0
    flip(path)
    with pytest.raises(CorruptInputError, match=path.name):
        read_frame(path)
    assert not [left for left in tmp_path.rglob("*") if "tmp" in left.name or "scratch" in left.name]


@DAMAGES
@pytest.mark.parametrize("name", GLOBAL)
def test_a_damaged_measured_shard_is_named_by_the_merge(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    """Never merged, never a traceback of a library: the core rebuilds what is named."""
    stage = stages.find(name)()
    assert isinstance(stage, GlobalStage)
    raw, signals = measured(stage, tmp_path)
    damage(signals[2])
    with pytest.raises(CorruptInputError) as caught:
        stage.merge(raw, signals, tmp_path)
    assert caught.value.path == signals[2]


@DAMAGES
def test_a_damaged_raw_shard_is_named_by_a_fit(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Also where nothing but the fit of ppl reads it."""
    raw, _ = measured(stages.find("language")(), tmp_path)
    damage(raw[1])
    with pytest.raises(CorruptInputError) as caught:
        Perplexity().fit(raw, tmp_path)
    assert caught.value.path == raw[1]


@pytest.mark.parametrize("name", ["dedup", "ppl", "turns"])
def test_a_damaged_raw_shard_is_named_by_a_merge_that_reads_it(name: str, tmp_path: Path) -> None:
    """Texts, messages and sources are read again there."""
    stage = stages.find(name)()
    assert isinstance(stage, GlobalStage)
    raw, signals = measured(stage, tmp_path)
    cut(raw[0])
    with pytest.raises(CorruptInputError) as caught:
        stage.merge(raw, signals, tmp_path)
    assert caught.value.path == raw[0]


def fits(folder: Path) -> Iterator[tuple[FittedStage, tuple[str, ...]]]:
    """Stages that fit, and what their fits leave."""
    earlier = folder / "earlier.jsonl"
    earlier.write_text('{"text": "one two three four five six seven"}\n')
    yield Perplexity(), ("half0.bin", "half1.bin", "models.json", "fitted.json")
    yield Against(str(earlier)), ("index/sets", "index/names.parquet", "index/order", "fitted.json")


@DAMAGES
@pytest.mark.parametrize("which", [0, 1], ids=["ppl", "against"])
def test_damage_to_what_a_fit_left_is_named_and_a_new_fit_mends_it(
    which: int, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    """Nothing is measured by half a model, or by one with other weights."""
    stage, left = list(fits(tmp_path))[which]
    save_frame(tmp_path / "raw" / "00000.parquet", WHOLE)
    folder = tmp_path / "stage"
    folder.mkdir()
    for name in left:
        stage.fit([tmp_path / "raw" / "00000.parquet"], folder)
        stage.open(folder)
        damage(folder / name)
        with pytest.raises(CorruptInputError) as caught:
            stage.open(folder)
        assert caught.value.path == folder / name
        caught.value.path.unlink(missing_ok=True)


def small_disk(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files end at 64 kB: a full disk without one."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
    words = [sys.executable, "-c", limit + code, str(folder)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_mapped_columns_take_their_room_before_they_are_written(tmp_path: Path) -> None:
    """Where there is no room an OSError says so; a signal would end the process."""
    code = "import sys; from pathlib import Path; import numpy as np; from stages.files import zeros\n"
    code += "zeros(Path(sys.argv[1]) / 'column', np.uint32, 1 << 20)"
    done = small_disk(tmp_path, code)
    assert "OSError: [Errno 27] File too large" in done.stderr
    column = files.zeros(tmp_path / "whole", np.uint32, 5000)
    assert (tmp_path / "whole").stat().st_blocks * 512 >= 20_000
    assert not column.any()
    assert len(files.zeros(tmp_path / "none", np.uint64, 0)) == 0


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_disk_that_fills_during_training_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whichever column no longer fits: ENOSPC, and nothing is left behind."""
    calls: list[int] = []

    allocate = os.posix_fallocate

    def full(file: int, offset: int, length: int) -> None:
        calls.append(length)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(counts, "IN_MEMORY", 0)
    lines = [pl.Series([f"a b c d e {i} f g {i % 7}" for i in range(400)])]
    with pytest.raises(OSError, match="No space left") as caught:
        ngram.train(lines, tmp_path / "model.bin")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_with_its_number(tmp_path: Path) -> None:
    """Frames, models and an index: each write that fails is an OSError whose number says why."""
    code = """
import sys
from pathlib import Path
import numpy as np, polars as pl
from stages import files
from stages.dedup import against
from stages.dedup.bands import Matching
from stages.ngram import arpa
from stages.ngram.kneser_ney import Section
folder = Path(sys.argv[1])
noise = np.random.default_rng(0).random(50_000)
texts = pl.DataFrame({"text": [" ".join(map(str, noise[i : i + 50])) for i in range(9_000, 9_900)]})
grams, none = pl.Series(noise.astype(str)), np.empty(0)
bands = Matching(0.5, 128, 0.5, 1)
works = (
    lambda: files.save_frame(folder / "a", pl.DataFrame({"a": noise})),
    lambda: arpa.write([Section(1, none, none, noise.astype(np.float32), None, none, none)], none, grams, folder / "b"),
    lambda: against.build(iter([texts.with_columns(name=pl.col("text"))]), bands, folder / "index"),
)
for work in works:
    try:
        work()
    except OSError as error:
        print(error.errno)
print(sorted(path.name for path in folder.iterdir()))
"""
    done = small_disk(tmp_path, code)
    assert done.stdout.splitlines() == ["27", "27", "27", "[]"], done.stderr
