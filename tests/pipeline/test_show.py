"""`refine show` and `refine signals`: what a run dropped, beside what it kept, and all its signals as one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import Refine, chat

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon"
OTHER = "\x1b[31momega\x1b[0m"
Jsonl = Callable[..., Path]


def _of(text: str, extra: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], "note": extra}


@pytest.fixture
def made(refine: Refine, jsonl: Jsonl) -> str:
    """A run in which the second of two near-duplicates, which is shorter and has a word of its own, is dropped."""
    long = " ".join(f"{word}{i}" for i in range(6) for word in WORDS.split())
    short = long.replace("kappa3", OTHER).removesuffix(" upsilon5")
    source = jsonl([_of(long, None), _of(short, {"deep": [1, 2]}), *(chat(i) for i in range(5))])
    done = refine("run", source, "--stages", "dedup", "--out", "r", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return "r"


def test_a_duplicate_is_shown_beside_the_one_kept_instead(refine: Refine, made: str) -> None:
    """With the words that differ, marked, in their context; escapes of the corpus are shown, not obeyed."""
    text = refine("show", made, "--reason", "near_duplicate").stdout
    assert "kept instead: " in text
    assert text.count("assistant: alpha0 beta0") == 2
    line = " ".join(text.split("differing words: ")[1].split())
    assert "iota3 [-\ufffd[31momega\ufffd[0m-] {+kappa3+} lambda3" in line
    assert "{+upsilon5+}" in line
    assert "gamma0" in line  # the context at the beginning is cut to four words
    assert "epsilon1" not in line
    assert "\x1b" not in text


def test_show_as_json_holds_values_not_json_in_strings(refine: Refine, made: str) -> None:
    """Values of the rule and further columns of the source are parsed; the kept one and the differences are there."""
    (one,) = json.loads(refine("show", made, "--reason", "near_duplicate", "--json").stdout)
    assert one["values"] == {"duplicate_of": one["duplicate_of"], "jaccard": pytest.approx(one["jaccard"])}
    assert one["extra"] == {"note": {"deep": [1, 2]}}
    assert one["kept"]["id"] == one["duplicate_of"]
    assert one["kept"]["messages"][1]["content"].endswith(" upsilon5")
    assert one["differences"] == [{"dropped": OTHER, "kept": "kappa3"}, {"dropped": "", "kept": "upsilon5"}]
    (same,) = json.loads(refine("show", made, "--id", one["id"], "--json").stdout)
    assert same["differences"] == one["differences"]
    assert not [name for name, value in one.items() if isinstance(value, str) and value[:1] in {"{", "["}]


def test_a_seed_is_no_negative_number(refine: Refine, made: str) -> None:
    """The generator takes none."""
    done = refine("show", made, "--seed", "-1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'--seed'" in done.stderr


def test_a_copy_has_the_same_words(refine: Refine, jsonl: Jsonl) -> None:
    """Of two equal conversations nothing differs."""
    source = jsonl([_of(WORDS, None), _of(WORDS, None)])
    assert refine("run", source, "--stages", "dedup", "--out", "r", "--workers", 1).returncode == 0
    assert "\nsame words\n" in refine("show", "r", "--reason", "near_duplicate").stdout
    assert json.loads(refine("show", "r", "--json").stdout)[0]["differences"] == []


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_signals_are_one_table(refine: Refine, made: str, tmp_path: Path, ending: str) -> None:
    """One row per conversation in the order of the corpus, all columns, the same in each format."""
    import refine as api

    assert refine("signals", made, "--out", f"x.{ending}").stdout.startswith(f"x.{ending}: ")
    run = api.open_run(tmp_path / made)
    expected = run.signals.collect()
    assert expected["id"].to_list() == run.raw.select("id").collect()["id"].to_list()
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        "parquet": pl.read_parquet,
        "csv": pl.read_csv,
        "jsonl": lambda path: pl.read_ndjson(path, schema=expected.schema),
    }
    table = readers[ending](tmp_path / f"x.{ending}")
    assert table.columns == expected.columns
    if ending == "csv":  # a list is its values with spaces between
        expected = expected.with_columns(pl.col("band_keys").cast(pl.List(pl.String)).list.join(" "))
        table = table.with_columns(pl.col("band_keys").cast(pl.String).fill_null(""))
        table = table.cast(expected.schema)
    assert table.equals(expected)


def test_signals_without_out_are_summed_up(refine: Refine, made: str) -> None:
    """A line per signal."""
    lines = refine("signals", made).stdout.splitlines()
    assert lines[0].rstrip() == "7 conversations"
    assert any(line.split()[:3] == ["cluster_size", "UInt32", "0"] for line in lines), lines


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("x.txt", "--out is x.txt, expected a file that ends in .parquet, .csv, .jsonl"),
        ("r/x.csv", "in the run folder"),
    ],
)
def test_signals_are_not_written_just_anywhere(refine: Refine, made: str, out: str, said: str) -> None:
    """Not in an unknown format, and not among the files of the run."""
    done = refine("signals", made, "--out", out)
    assert done.returncode == 1
    assert said in done.stderr
