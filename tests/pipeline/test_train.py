"""`refine train` and `refine scale` as a user starts them: what they leave, what they say, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.engine import Local
from pipeline.experiments.train import numbers
from tests.conftest import ROOT, Refine, contents
from tests.trainer.test_cvfp_training import SIZE, SMALL, data, stream
from trainer.cvfp.settings import Phase2
from trainer.experiment import baselines, gru
from trainer.experiment.jobs import Job, carry_out, run
from trainer.experiment.kinds import KINDS
from trainer.experiment.points import points, resampled
from trainer.experiment.records import read
from trainer.prepare.choices import Choices
from trainer.prepare.prepared import prepare
from trainer.presets import PRESETS, PresetError

Jsonl = Callable[..., Path]
TINY = ("--tokenizer", "bpe:400", "--test-tokens", "3000")
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def chats(count: int = 150) -> list[dict[str, Any]]:
    """Conversations over a small vocabulary in which a word tells much about the next."""
    words = [f"{letter}{vowel}" for letter in "bdfgklmnp" for vowel in ("an", "ol")]
    generator = np.random.default_rng(0)
    made = []
    for i in range(count):
        at, said = int(generator.integers(len(words))), []
        for _ in range(60):
            at = (at * 3 + 1) % len(words) if generator.random() < 0.7 else int(generator.integers(len(words)))
            said.append(words[at])
        messages = [{"role": ("user", "assistant")[j], "content": " ".join(said[30 * j :][:30])} for j in range(2)]
        made.append({"prompt": messages[0]["content"], "prompt_id": f"p{i}", "messages": messages})
    return made


def test_a_training_leaves_its_record_and_says_where_it_stands(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Network and every baseline on one test set, in a table and as JSON; the second time nothing is trained anew."""
    words = ["train", jsonl(chats()), "--budget", "3000", *TINY, "--out", "t", "--threads", "1"]
    first = refine(*words, **OFFLINE)
    assert first.returncode == 0, first.stderr
    assert "pass   2" in first.stderr
    assert "step" in first.stderr
    for name in ("CVFP", "random frozen block", "GRU of the same size", "Kneser-Ney 5-gram", "unigram"):
        assert name in first.stdout
    assert "CVFP loses to" in first.stdout or "CVFP beats every baseline" in first.stdout
    assert "the test set has" in first.stderr  # far below what is wanted: said, with the standard error it implies
    assert "standard error" in first.stderr
    before = contents(tmp_path / "t")
    again = refine(*words, "--json", **OFFLINE)
    said = json.loads(again.stdout)
    assert {"cvfp", "random_block", "gru", "kneser_ney", "unigram", "data", "folder"} <= said.keys()
    assert said["cvfp"]["tokens"] == 3000
    assert said["cvfp"]["nats"] < said["unigram"]["nats"]
    assert said["cvfp"]["test_tokens"] == said["gru"]["test_tokens"]
    for kind in ("cvfp", "gru", "unigram"):  # each says what it was made of
        assert said[kind]["preset"] == "house"
        assert "PPMI-SVD" in said[kind]["embeddings"]
        assert said[kind]["embeddings_tokens"] == said["data"]["pool"]["tokens"]
        assert said[kind]["settings"]["phase2"]["batch"] > 0
    folder = Path(tmp_path / said["folder"])
    assert {"record.json", "metrics.jsonl", "scores.npz", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    assert contents(tmp_path / "t") == before


def test_a_law_has_intervals_and_baselines(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Three budgets, two seeds: alpha with its interval, baselines beside it, as JSON and as tables."""
    words = ["scale", jsonl(chats()), "--budgets", "500,1000,2e3", "--seeds", "2", *TINY, "--out", "s"]
    done = refine(*words, "--json", **OFFLINE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    law = next(law for law in found["laws"] if law["corpus"] == "CVFP" and law["law"] == "power")
    assert law["alpha_interval"][0] < law["alpha"] < law["alpha_interval"][1]
    assert law["n"] == 6
    assert law["per_doubling"] == pytest.approx(1 - 2 ** law["alpha"])
    rows = (tmp_path / "s/points.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 + 6 + 3 + 3 + 3  # the network and counts for both seeds, the others for one
    own = json.loads(refine("scale", "--points", "s/points.csv", "--json").stdout)  # what it writes it can read
    assert next(one for one in own["laws"] if one["corpus"] == "CVFP")["alpha"] == pytest.approx(law["alpha"])
    table = refine(*words, "--predict", "100000", **OFFLINE)
    assert "extrapolates" in table.stdout
    assert "PPL beside the baselines" in table.stdout


def test_trainings_are_the_same_for_any_workers(tmp_path: Path) -> None:
    """In this process or in two others: the same records but for the seconds; done twice, nothing is done again."""
    given = pl.DataFrame({"first": [c["prompt"] for c in chats(90)], "text": [c["prompt"] for c in chats(90)]})
    wanted = Choices(tokenizer="bpe:300", test_tokens=600, validation_tokens=300)
    preset = replace(SMALL, phase2=replace(SMALL.phase2, steps=20))
    keys = np.arange(90, dtype=np.uint64)
    made = prepare(given, keys, np.arange(90), preset, wanted, tmp_path / "data")
    preset = preset.sized(made.record.vocabulary)
    jobs = [
        Job(kind, count, seed, str(tmp_path / "data"), made.digest, preset)
        for kind in KINDS
        for count in (300, 600)
        for seed in (0, 1)
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
    told: list[str] = []
    run(tmp_path / "1", jobs, lambda *_: iter(()), lambda job, _: told.append(job.name))
    assert sorted(told) == sorted(job.name for job in jobs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "99999999"], "the largest budget there is"),
        (["--preset", "e9"], "there is no preset 'e9'; there are house, e1, e2, e3a, e3b, e4a, e4b"),
        (["--preset", "e1"], "GPT-2"),
        (["--device", "warp"], "--device warp is not available"),
        (["--tokenizer", "nowhere.json"], "nowhere.json"),
        (["--embeddings", "nowhere.npy"], "nowhere.npy"),
        (["--out", "."], "is not an experiment's folder"),
        (["--limit", "3"], "no test set can be set apart"),
    ],
)
def test_a_training_that_cannot_be_is_one_sentence(refine: Refine, jsonl: Jsonl, words: list[str], said: str) -> None:
    """Exit code 1, the reason and what to do; no traceback, nothing weaker in its place."""
    done = refine("train", jsonl(chats(60)), *TINY, *words, **OFFLINE)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert said in last
    assert last.startswith("refine: ")
    assert "Traceback" not in done.stderr
    assert "a fault of refine" not in last


def test_a_corpus_without_text_is_one_sentence(refine: Refine, jsonl: Jsonl) -> None:
    """Empty messages train nothing."""
    empty = [{"prompt": "", "prompt_id": str(i), "messages": [{"role": "user", "content": ""}]} for i in range(20)]
    done = refine("train", jsonl(empty), *TINY, **OFFLINE)
    assert done.returncode == 1
    assert "text" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_budgets_are_whole_numbers_of_tokens() -> None:
    """As people write them; what is none is named."""
    assert numbers("10000,20_000, 1e5") == [10_000, 20_000, 100_000]
    assert numbers(None) is None
    for said in ("ten", "1", "1000.5", "1000,,2000", "nan", "inf"):
        with pytest.raises(PresetError, match="--budgets has"):
            numbers(said)


def test_the_users_tables_ship_as_examples(refine: Refine) -> None:
    """`refine scale --points` on each: E1's exponent and per-doubling share, as CVFP.md has them."""
    done = refine("scale", "--points", ROOT / "trainer/examples/E1.csv", "--json")
    law = json.loads(done.stdout)["laws"][0]
    assert (round(law["alpha"], 4), round(law["r2"], 4)) == (-0.7143, 0.9818)
    assert round(law["per_doubling"], 4) == 0.3905


def test_count_models_sum_to_one() -> None:
    """Over the whole vocabulary, ids never seen included, after a seen and an unseen past."""
    train = stream(3)
    for past in (train.ids[1:4].tolist(), [SIZE - 1, 7]):
        ids = [id_ for token in range(1, SIZE) for id_ in (0, *past, token)] + [0, *past, 0]
        starts = np.flatnonzero(np.array(ids[:-1]) == 0)
        every = replace(train, ids=np.array(ids, np.int32), starts=starts, bytes=np.zeros(SIZE, np.int64))
        chances = np.exp(-baselines.kneser_ney(train, every, SIZE))
        assert chances[starts + len(past)].sum() == pytest.approx(1.0, abs=1e-4)


def test_count_models_score_every_target() -> None:
    """As many as the stream has; a cut last conversation has no end to score; unigram by hand."""
    train, test = stream(20), stream(4, 1)
    for part in (test, test.prefix(100)):
        assert len(baselines.kneser_ney(train, part, SIZE)) == part.tokens - 1
    counts = np.bincount(train.ids, minlength=SIZE) + 1
    expected = -np.log(counts[test.ids[1:]] / counts.sum())
    np.testing.assert_allclose(baselines.unigram(train, test, SIZE), expected)
    assert baselines.kneser_ney(train, test, SIZE).mean() < baselines.unigram(train, test, SIZE).mean() - 1


def test_the_recurrent_baseline_has_the_networks_size_and_learns() -> None:
    """Parameters within 2 % of the two blocks; clearly below frequencies after some epochs."""
    for blocks, width in ((198_912, 128), (17_092_608, 768)):
        h = gru.hidden(blocks, width)
        size = 3 * h * (h + width + 2) + h * width + width
        assert abs(size / blocks - 1) < 0.02
    settings = Phase2(epochs=8, steps=300, evaluations=8, patience=0, batch=64, rate=0.01, restore=True)
    preset = replace(SMALL, phase2=settings)
    given = data()
    nats, right, said = baselines.gru(given, preset, 0, "cpu")
    assert len(nats) == len(right) == given.test.tokens - 1
    assert nats.mean() < baselines.unigram(given.train, given.test, SIZE).mean() - 0.5
    assert said["steps"] >= 300


def test_resamples_are_of_whole_conversations(tmp_path: Path) -> None:
    """The same draws for every training: equal trainings give equal columns; the spread is that of conversations."""
    generator = np.random.default_rng(0)
    targets = np.full(200, 50)
    nats = generator.normal(250, 20, 200)
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 50.0)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "scores.npz", nats=nats + shift, targets=targets)
    found = resampled([tmp_path / name for name in "abc"], np.arange(200))
    assert found is not None
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[2] - found[0], 1.0)
    assert found[0].std() == pytest.approx(nats.std() / 50 / np.sqrt(200), rel=0.1)


def test_resamples_are_of_whole_clusters(tmp_path: Path) -> None:
    """Each of 40 conversations is there five times: the spread is that of 40, and of some rows that of theirs."""
    each = np.random.default_rng(0).normal(250, 20, 40)
    np.savez(tmp_path / "scores.npz", nats=np.repeat(each, 5), targets=np.full(200, 50))
    clusters = np.repeat(np.arange(40), 5)
    found = resampled([tmp_path], clusters)
    assert found is not None
    assert found[0].std() == pytest.approx(each.std() / 50 / np.sqrt(40), rel=0.1)
    part = resampled([tmp_path], clusters, rows=clusters < 20)
    assert part is not None
    assert part[0].mean() == pytest.approx(each[:20].mean() / 50, rel=0.01)
    assert resampled([tmp_path], clusters, rows=clusters == 3) is None


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "house"])
def test_a_preset_of_the_user_leaves_its_record(tmp_path: Path, name: str) -> None:
    """Each shrunk in width and samples, with all baselines: validation is what is reported, and the record says so."""
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
