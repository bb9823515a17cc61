"""`refine train` and `refine scale` from the command line: files, output, errors; and the baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.engine.local import Local
from pipeline.experiments.scale import lost_to
from pipeline.experiments.schedule import Cost, progress
from pipeline.experiments.train import numbers
from tests.conftest import ROOT, Refine, contents
from tests.pipeline.compare_corpus import BLINK
from tests.trainer.test_cvfp_training import SIZE, SMALL_PRESET, stream
from trainer.experiment import baselines, gru
from trainer.experiment.jobs import Job, carry_out, run
from trainer.experiment.kinds import KINDS
from trainer.experiment.points import points, resample
from trainer.experiment.records import read
from trainer.prepare.choices import Choices
from trainer.prepare.prepared import prepare
from trainer.presets import PRESETS, PresetError

Jsonl = Callable[..., Path]
TINY = ("--tokenizer", "bpe:400", "--test-tokens", "3000")


def chats(count: int = 150) -> list[dict[str, Any]]:
    """Conversations over a small vocabulary in which a word largely determines the next."""
    words = [f"{letter}{vowel}" for letter in "bdfgklmnp" for vowel in ("an", "ol")]
    generator = np.random.default_rng(0)
    made = []
    for i in range(count):
        at, sequence = int(generator.integers(len(words))), []
        for _ in range(60):
            at = (at * 3 + 1) % len(words) if generator.random() < 0.7 else int(generator.integers(len(words)))
            sequence.append(words[at])
        messages = [{"role": ("user", "assistant")[j], "content": " ".join(sequence[30 * j :][:30])} for j in range(2)]
        made.append({"prompt": messages[0]["content"], "prompt_id": f"p{i}", "messages": messages})
    return made


def test_a_training_run_leaves_its_record_and_is_not_repeated(
    refine: Refine, jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network and baselines are scored on one test set, in a table and as JSON; the second time nothing is trained."""
    longer = replace(
        BLINK, shape=replace(BLINK.shape, embedding=32), phase2=replace(BLINK.phase2, steps=300, rate=0.01)
    )
    monkeypatch.setitem(PRESETS, "blink", longer)
    words = ["train", jsonl(chats()), "--budget", "3000", *TINY, "--out", "t", "--threads", "1", "--preset", "blink"]
    first = refine(*words)
    assert first.returncode == 0, first.stderr
    assert "pass   2" in first.stderr
    assert "step" in first.stderr
    for name in ("CVFP", "random frozen block", "GRU", "Kneser-Ney 5-gram", "unigram"):
        assert name in first.stdout
    assert "CVFP loses to" in first.stdout or "CVFP beats every other model" in first.stdout
    assert "the test set has" in first.stderr  # far smaller than requested, so its standard error is reported
    assert "standard error" in first.stderr
    before = contents(tmp_path / "t")
    again = refine(*words, "--json")
    report = json.loads(again.stdout)
    assert {"cvfp", "random_block", "gru", "kneser_ney", "unigram", "data", "folder"} <= report.keys()
    assert report["cvfp"]["tokens"] == 3000
    assert report["cvfp"]["nats"] < report["unigram"]["nats"]
    assert report["cvfp"]["test_tokens"] == report["gru"]["test_tokens"]
    for kind in ("cvfp", "gru", "unigram"):  # each record is complete by itself
        assert report[kind]["preset"] == "blink"
        assert "PPMI-SVD" in report[kind]["embeddings"]
        assert report[kind]["embeddings_tokens"] == report["data"]["pool"]["tokens"]
        assert report[kind]["settings"]["phase2"]["batch"] > 0
    folder = Path(tmp_path / report["folder"])
    assert {"record.json", "metrics.jsonl", "scores.npz", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    assert contents(tmp_path / "t") == before


def test_a_law_has_intervals_and_baselines(
    refine: Refine, jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three budgets and two seeds give alpha with its interval and baselines, as JSON and as tables."""
    monkeypatch.setitem(PRESETS, "blink", BLINK)
    words = ["scale", jsonl(chats()), "--budgets", "500,1000,2e3", "--seeds", "2", *TINY, "--out", "s"]
    words += ["--preset", "blink", "--workers", "1"]  # one worker is this process, which knows the preset
    done = refine(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    law = next(law for law in found["laws"] if law["corpus"] == "CVFP" and law["law"] == "power")
    assert law["alpha_interval"][0] < law["alpha"] < law["alpha_interval"][1]
    assert law["n"] == 6
    assert law["per_doubling"] == pytest.approx(1 - 2 ** law["alpha"])
    rows = (tmp_path / "s/points.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 + 6 + 3 + 3 + 3  # the network and counts for both seeds, the others for one
    own = json.loads(refine("scale", "--points", "s/points.csv", "--json").stdout)  # it can read what it writes
    assert next(one for one in own["laws"] if one["corpus"] == "CVFP")["alpha"] == pytest.approx(law["alpha"])
    table = refine(*words, "--predict", "100000")
    assert "extrapolates" in table.stdout
    assert "PPL beside the baselines" in table.stdout


def test_a_network_is_beaten_at_some_of_the_budgets_that_both_have() -> None:
    """A baseline may lack the largest budgets."""
    nats = {"cvfp": [5.0, 4.0, 3.0], "gru": [4.9, 4.1], "unigram": [6.0, 6.0, 6.0]}
    runs = [(kind, tokens, 0, value) for kind, each in nats.items() for tokens, value in enumerate(each)]
    frame = pl.DataFrame(runs, ("kind", "tokens", "seed", "nats"), orient="row")
    assert lost_to(frame, "cvfp") == "CVFP loses to GRU at 1 of 2 budgets"
    beaten = frame.with_columns(pl.col("nats") + 2 * (pl.col("kind") == "gru"))
    assert lost_to(beaten, "cvfp") == "CVFP beats every other model at every budget that both have"
    assert lost_to(beaten.filter(pl.col("kind") != "gru"), "cvfp") == "CVFP beats every other model at every budget"


def test_progress_counts_work_and_not_runs(tmp_path: Path) -> None:
    """A small run that is done is a small share; a run in progress counts by its passes, then by its steps."""
    small, large = (Job("cvfp", budget, 0, "data", "digest", SMALL_PRESET) for budget in (100, 100_000))
    cost = Cost({"cvfp": (1.0, 0.001, 0.01)}, workers=1)
    for job in (small, large):
        (tmp_path / job.name).mkdir()
    (tmp_path / small.name / "record.json").write_text("{}")
    share, text = progress(tmp_path, [small, large], cost, 60.0)
    assert share == pytest.approx(cost.of([small]) / cost.of([small, large]))
    assert share < 0.1
    assert text.startswith(f"{share:.0%} of the work: 1 of 2 training runs done, 1.0 min; about ")
    shares = [share]
    half = SMALL_PRESET.phase2.total(large.budget - 1) // 2
    for line in ({"phase": 1, "pass": 1}, {"phase": 1, "pass": 2}, {"phase": 2, "step": half}):
        (tmp_path / large.name / "metrics.jsonl").write_text(
            json.dumps({"phase": 1, "how": "x"}) + "\n" + json.dumps(line)
        )
        shares.append(progress(tmp_path, [small, large], cost, 60.0)[0])
    assert shares == sorted(set(shares))
    steps = 0.01 * SMALL_PRESET.phase2.total(large.budget - 1)
    assert cost.spent(large, tmp_path / large.name) == pytest.approx(100 + steps / 2, rel=1e-3)
    (tmp_path / large.name / "metrics.jsonl").write_text('{"phase": 1, "pa')  # a line that is being written
    assert progress(tmp_path, [small, large], cost, 60.0)[0] == share


def test_training_runs_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    """In this process or in two others, records are the same except for seconds; finished runs are not repeated."""
    given = pl.DataFrame({"first": [c["prompt"] for c in chats(90)], "text": [c["prompt"] for c in chats(90)]})
    wanted = Choices(tokenizer="bpe:300", test_tokens=600, validation_tokens=300)
    preset = replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, steps=20))
    keys = np.arange(90, dtype=np.uint64)
    made = prepare(given, keys, np.arange(90), preset, wanted, tmp_path / "data")
    preset = preset.sized(made.record.vocabulary)
    jobs = [
        Job(kind, count, seed, str(tmp_path / "data"), made.digest, preset)
        for kind in KINDS
        for count, seed in ((300, 0), (600, 1))[: 2 if kind == "cvfp" else 1]
    ]
    tables = []
    for workers in (1, 2):
        engine = Local(workers)
        folders = run(tmp_path / str(workers), jobs, engine.map, lambda *_: None)
        engine.close()
        tables.append(points(folders, made.clusters))
    assert tables[0][0].equals(tables[1][0])
    assert tables[0][1] is not None
    assert tables[1][1] is not None
    assert np.array_equal(tables[0][1], tables[1][1])
    names: list[str] = []
    run(tmp_path / "1", jobs, lambda *_: iter(()), lambda job, _: names.append(job.name))
    assert sorted(names) == sorted(job.name for job in jobs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "99999999"], "the budget is 99,999,999 tokens and the training pool has"),
        (["--preset", "e9"], "there is no preset 'e9': choose one of house, e1, e2, e3a, e3b, e4a, e4b"),
        (["--preset", "e1"], "GPT-2"),
        (["--device", "warp"], "--device warp is not available"),
        (["--tokenizer", "nowhere.json"], "nowhere.json"),
        (["--embeddings", "nowhere.npy"], "nowhere.npy"),
        (["--out", "."], "is not an experiment's folder"),
        (["--limit", "3"], "too small for a test set"),
    ],
)
def test_a_training_run_that_is_impossible_is_one_sentence(
    refine: Refine, jsonl: Jsonl, words: list[str], message: str
) -> None:
    """Exit code 1, the reason and what to do; no traceback and no fallback."""
    done = refine("train", jsonl(chats(60)), *TINY, *words)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert message in last
    assert last.startswith("refine: ")
    assert "Traceback" not in done.stderr
    assert "a fault of refine" not in last


def test_a_corpus_without_text_is_one_sentence(refine: Refine, jsonl: Jsonl) -> None:
    """Empty messages hold nothing to train on."""
    empty = [{"prompt": "", "prompt_id": str(i), "messages": [{"role": "user", "content": ""}]} for i in range(20)]
    done = refine("train", jsonl(empty), *TINY)
    assert done.returncode == 1
    assert "text" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_budgets_are_whole_numbers_of_tokens() -> None:
    """In several notations; a word that is not one is named in the error."""
    assert numbers("10000,20_000, 1e5") == [10_000, 20_000, 100_000]
    assert numbers(None) is None
    for text in ("ten", "1", "1000.5", "1000,,2000", "nan", "inf"):
        with pytest.raises(PresetError, match="--budgets has"):
            numbers(text)


def test_the_tables_of_the_original_experiments_ship_as_examples(refine: Refine) -> None:
    """`refine scale --points` gives the published exponent and per-doubling share of E1."""
    done = refine("scale", "--points", ROOT / "trainer/examples/E1.csv", "--json")
    law = json.loads(done.stdout)["laws"][0]
    assert (round(law["alpha"], 4), round(law["r2"], 4)) == (-0.7143, 0.9818)
    assert round(law["per_doubling"], 4) == 0.3905


def test_count_models_sum_to_one() -> None:
    """Over the whole vocabulary, unseen ids included, after a seen and an unseen past."""
    train = stream(3)
    for past in (train.ids[1:4].tolist(), [SIZE - 1, 7]):
        ids = [id_ for token in range(1, SIZE) for id_ in (0, *past, token)] + [0, *past, 0]
        starts = np.flatnonzero(np.array(ids[:-1]) == 0)
        every = replace(train, ids=np.array(ids, np.int32), starts=starts, bytes=np.zeros(SIZE, np.int64))
        chances = np.exp(-baselines.kneser_ney(train, every, SIZE))
        assert chances[starts + len(past)].sum() == pytest.approx(1.0, abs=1e-4)


def test_count_models_score_every_target() -> None:
    """As many as the stream has, also if the last conversation is cut; the unigram model is computed by hand."""
    train, test = stream(20), stream(4, 1)
    for part in (test, test.prefix(100)):
        assert len(baselines.kneser_ney(train, part, SIZE)) == part.tokens - 1
    counts = np.bincount(train.ids, minlength=SIZE) + 1
    expected = -np.log(counts[test.ids[1:]] / counts.sum())
    np.testing.assert_allclose(baselines.unigram(train, test, SIZE), expected)
    assert baselines.kneser_ney(train, test, SIZE).mean() < baselines.unigram(train, test, SIZE).mean() - 1


def test_the_recurrent_network_has_the_size_of_cvfp() -> None:
    """Its parameters are within 2 % of the two blocks."""
    for blocks, width in ((198_912, 128), (17_092_608, 768)):
        h = gru.hidden(blocks, width)
        size = 3 * h * (h + width + 2) + h * width + width
        assert abs(size / blocks - 1) < 0.02


def test_resamples_are_of_whole_conversations(tmp_path: Path) -> None:
    """All runs have the same draws, so equal runs have equal rows; the spread is that of conversations."""
    generator = np.random.default_rng(0)
    targets = np.full(200, 50)
    nats = generator.normal(250, 20, 200)
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 50.0)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "scores.npz", nats=nats + shift, targets=targets)
    found = resample([tmp_path / name for name in "abc"], np.arange(200))
    assert found is not None
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[2] - found[0], 1.0)
    assert found[0].std() == pytest.approx(nats.std() / 50 / np.sqrt(200), rel=0.1)


def test_resamples_are_of_whole_clusters(tmp_path: Path) -> None:
    """With five copies of each of 40 conversations, the spread is that of 40; the same holds for a subset."""
    each = np.random.default_rng(0).normal(250, 20, 40)
    np.savez(tmp_path / "scores.npz", nats=np.repeat(each, 5), targets=np.full(200, 50))
    clusters = np.repeat(np.arange(40), 5)
    found = resample([tmp_path], clusters)
    assert found is not None
    assert found[0].std() == pytest.approx(each.std() / 50 / np.sqrt(40), rel=0.1)
    part = resample([tmp_path], clusters, mask=clusters < 20)
    assert part is not None
    assert part[0].mean() == pytest.approx(each[:20].mean() / 50, rel=0.01)
    assert resample([tmp_path], clusters, mask=clusters == 3) is None


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "house"])
def test_a_preset_of_the_original_experiments_leaves_its_record(tmp_path: Path, name: str) -> None:
    """With smaller width and fewer samples: the validation set is reported, and the record says so."""
    preset = PRESETS[name]
    context = preset.shape.context // 48
    preset = replace(
        preset,
        shape=replace(preset.shape, embedding=16, context=context),
        phase1=replace(preset.phase1, passes=3, least=2),
        phase2=replace(preset.phase2, epochs=1),
        validation=range(60, 80),
        samples=(40,),
    )
    frame = pl.DataFrame({"first": [c["prompt"] for c in chats(90)], "text": [c["prompt"] for c in chats(90)]})
    wanted = Choices(tokenizer="bpe:300", embeddings="random")
    made = prepare(frame, np.arange(90, dtype=np.uint64), None, preset, wanted, tmp_path / "data")
    preset = preset.sized(made.record.vocabulary)
    (budget,) = made.budgets(preset, None)
    for kind in KINDS:
        job = Job(kind, budget, 42, str(tmp_path / "data"), made.digest, preset)
        record = carry_out(tmp_path, {job.name: job}, job.name)
        assert json.loads(json.dumps(record)) == read(tmp_path / job.name)
        assert record["settings"]["validation"] == [60, 80]
        assert record["test_conversations"] == 20
        assert record["ppl"] > 1
