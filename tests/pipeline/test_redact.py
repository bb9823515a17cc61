"""Personal data does not leave a run that redacts it: not in its output, nor on its card or page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.plan import PlanError, dumps, load
from tests.conftest import Refine, chat, contents

MAIL, PHONE, IBAN = "jane.doe@acme.org", "(212) 736-5000", "DE89370400440532013000"
PLAN = """
[write]
redact = ["email", "phone"]

[[stage]]
use = "heuristics"

[[stage]]
use = "pii"

[[drop]]
reason = "private"
where = "pii_phone > 1"
"""


@pytest.mark.usefixtures("no_pictures")
def test_output_page_and_card_have_placeholders(refine: Refine, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """In refined, rejected and on the page; kinds that are not named stay; the same for any number of workers."""
    records = [chat(n, 2 + n % 3) for n in range(90)]
    for n, record in enumerate(records):
        said = record["messages"][0]
        said["content"] += f" write to {MAIL}" if n % 3 == 0 else ""
        said["content"] += f" or call {PHONE}, {PHONE} and pay {IBAN}" if n % 9 == 0 else ""
        record["prompt"] = said["content"]
        record["owner"] = {"mail": MAIL}
    source, plan = jsonl(records), tmp_path / "plan.toml"
    plan.write_text(PLAN)
    out = {}
    for workers in (1, 2):
        folder = tmp_path / f"run{workers}"
        done = refine(
            "run", source, "--plan", plan, "--out", folder, "--shard-rows", 20, "--workers", workers, "--json"
        )
        assert done.returncode == 0, done.stderr
        out[workers] = contents(folder / "refined") | contents(folder / "rejected")
        summary = json.loads(done.stdout)
    assert out[1] == out[2]
    assert summary["by_rule"] == {"private": 10}
    assert summary["redacted"] == 90 + 2 * (30 + 20)  # in `extra`; in the first message and in the prompt
    frames = [pl.read_parquet(folder / part / "*.parquet") for part in ("refined", "rejected")]
    text = "".join(
        frame.select(pl.struct(pl.all()).struct.json_encode()).to_series().str.join("").item() for frame in frames
    )
    assert (MAIL in text, PHONE in text, IBAN in text) == (False, False, True)
    assert ("<EMAIL>" in text, "<PHONE>" in text) == (True, True)
    assert all(json.loads(one) == {"owner": {"mail": "<EMAIL>"}} for one in frames[0]["extra"])
    page = refine("report", folder, "--out", tmp_path / "page")
    assert page.returncode == 0, page.stderr
    shown = (tmp_path / "page" / "index.html").read_text() + (folder / "README.md").read_text()
    assert (MAIL in shown, PHONE in shown, "EMAIL" in shown) == (False, False, True)
    assert "190 items of personal data" in (folder / "README.md").read_text()


def test_records_as_they_came_cannot_be_redacted(refine: Refine, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """`--as source` would write what the plan redacts, so it is refused before any work."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    done = refine("run", jsonl([chat(1)]), "--plan", plan, "--out", tmp_path / "run", "--as", "source")
    assert done.returncode == 1
    assert "redacts" in done.stderr
    assert not (tmp_path / "run" / "raw").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('use = "pii"', 'use = "language"'), "needs the stage `pii`"),
        (('"phone"]', '"phones"]'), "names 'phones'; there are email"),
        (("redact =", "redacts ="), "did you mean 'redact'"),
        (('redact = ["email", "phone"]', "redact = true"), "expected a list"),
    ],
)
def test_a_redaction_that_cannot_be_done_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    """A missing stage, an unknown kind, a misspelt key."""
    path = tmp_path / "plan.toml"
    path.write_text(
        PLAN.replace(*change).replace("pii_phone > 1", "n_words > 0" if "language" in change[1] else "pii > 9")
    )
    with pytest.raises(PlanError, match=message):
        load(path)


def test_a_plan_that_redacts_is_written_as_it_was_read(tmp_path: Path) -> None:
    """`dumps` and `load` are inverse."""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    plan = load(path)
    path.write_text(dumps(plan))
    assert load(path) == plan
    assert plan.redact == ("email", "phone")
