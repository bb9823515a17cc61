"""`--network all`: the same design by every network, one verdict, and whether the networks agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.compare import command as comparing
from pipeline.compare.result import Comparison
from pipeline.compare.show import print_comparison
from tests.pipeline.compare_corpus import BLINK, asked, how, report
from trainer import presets
from trainer.experiment.kinds import NETWORKS, NetworkError


@pytest.fixture(autouse=True)
def blink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset of the tests available."""
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)


@pytest.fixture(scope="module")
def both(few_orders: None, my_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Comparison]:  # noqa: ARG001
    """A comparison by all networks, then by the transformer alone in the same folder of training runs."""
    here = tmp_path_factory.mktemp("networks")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "blink", BLINK)
        patch.setattr("pipeline.compare.verdict.MIN_CONVERSATIONS", 5)
        patch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")
        patch.setattr("pipeline.report.run.sections.of_run", lambda _run: [])
        for network in ("all", "transformer"):
            (here / network).mkdir()
            options = how(work=here / "work", seeds=2, network=network)
            found.append(comparing.compare(asked("raw", "refined", my_run, here / network, options)))
    first, second = found
    return first, second


@pytest.fixture
def made(both: tuple[Comparison, Comparison]) -> Comparison:
    return both[0]


def test_each_network_has_a_level_and_an_exponent(made: Comparison) -> None:
    """With intervals, in report.json; those of the first network are the headline's."""
    found = report(made.page.parent.parent)
    assert list(found["networks"]) == list(NETWORKS) == [one.kind for one in made.networks]
    for one in found["networks"].values():
        for key in ("level", "delta_alpha"):
            low, high = one[f"{key}_interval"]
            assert low <= one[key] <= high
    first = found["networks"]["cvfp"]
    assert {key: found[key] for key in first} == first
    assert len({one["level"] for one in found["networks"].values()}) == 3
    assert found["agreement"] == made.agreement
    assert made.agreement.startswith(("The networks", "No network"))


def test_the_page_and_the_terminal_say_whether_networks_agree(
    made: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a section with a table and a figure, and below the verdict."""
    page = made.page.read_text()
    assert "<h2>By network</h2>" in page
    assert page.count(made.agreement) >= 2
    assert {"networks"} <= set(report(made.page.parent.parent)["figures"])
    print_comparison(made, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(f"{made.verdict.sentence} {made.agreement}".split()) in printed
    assert "By network, on refined-test" in printed


def test_all_networks_train_the_same_design(made: Comparison) -> None:
    """Each on both corpora, every budget and seed, with the same number of steps in both; the design names them."""
    assert made.experiment is not None
    for kind in NETWORKS:
        jobs = [made.experiment.jobs[kind, arm] for arm in made.pair.names]
        pairs = [[(job.budget, job.seed, job.order) for job in of_arm] for of_arm in jobs]
        assert pairs[0] == pairs[1]
        assert len(pairs[0]) == 10
    assert "gru" not in made.experiment.design.baselines
    designs = [json.loads(path.read_text()) for path in made.experiment.folder.glob("design-*.json")]
    assert sorted(one["networks"] for one in designs) == [["cvfp", "transformer", "gru"], ["transformer"]]
    steps = next(one for one in made.checks if one.name == "both arms take the same optimiser steps")
    assert steps.passed
    assert "Transformer, 200 tokens: 9;" in steps.found


def test_one_network_takes_the_runs_of_all(both: tuple[Comparison, Comparison]) -> None:
    """Its verdict is about its own models, no training run is repeated, and there is nothing to agree with."""
    every, alone = both
    names = [{job.name for job in one.experiment.every()} for one in both if one.experiment is not None]
    assert names[1] < names[0]
    by_all, by_one = (report(one.page.parent.parent) for one in both)
    assert by_one["networks"] == {"transformer": by_all["networks"]["transformer"]}
    assert by_one["level"] == by_one["networks"]["transformer"]["level"]
    assert every.verdict.sentence != alone.verdict.sentence
    assert alone.agreement == ""
    assert "<h2>By network</h2>" not in alone.page.read_text()
    assert "random_block" not in json.dumps(by_one["test_sets"])
    assert "Transformer, a small decoder transformer" in alone.page.read_text()


def test_a_screen_trains_no_network(tmp_path: Path) -> None:
    """It is refused with another network, as is a network that there is not; before a corpus is read."""
    for options, message in (
        (how(screen=True, network="gru"), "--network is gru, and --screen trains no network"),
        (how(screen=True, loss="replies"), "--loss is replies, and the n-gram models of --screen learn all tokens"),
        (how(network="lstm"), "--network is 'lstm', expected cvfp, transformer, gru or all"),
    ):
        with pytest.raises(NetworkError, match=message):
            comparing.compare(asked("nowhere", "neither", None, tmp_path, options))
