"""`refine scale --points`: a table becomes laws, a bad cell one sentence, and the examples page is correct."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.experiments.formats import MINUS, share
from pipeline.experiments.laws import fit_points, show
from pipeline.experiments.points_csv import read
from tests.conftest import ROOT
from trainer.scaling import Law, Points, ScalingError, contradiction, difference, fit

EXAMPLES = ROOT / "trainer" / "examples"


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    """Write a CSV file."""

    def write(text: str) -> Path:
        path = tmp_path / "points.csv"
        path.write_text(text)
        return path

    return write


def as_json(file: Path, capsys: pytest.CaptureFixture[str], *predict: float) -> dict[str, Any]:
    """The output of `--json`."""
    show(fit_points(file, predict), as_json=True)
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_json_holds_both_laws_held_out_differences_and_notes(
    csv: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A simulated floor is recovered for both corpora, with intervals over seeds, and their difference is paired."""
    rows = [
        f"{name},{n},{float(floor + 9e3 * n**-0.5 * np.exp(0.004 * seed)):.6f},{seed},ignored"
        for (name, floor), seed, n in product((("raw", 30.0), ("refined", 25.0)), (1, 2, 3), (1000, 4000, 16000, 64000))
    ]
    found = as_json(csv("\n".join(["corpus,tokens,ppl,seed,other", *rows])), capsys, 128000)
    laws = {(law["corpus"], law["law"]): law for law in found["laws"]}
    assert list(laws) == [(c, k) for c in ("raw", "refined") for k in ("power", "saturating")]
    assert laws["raw", "saturating"]["floor"] == pytest.approx(30, abs=0.5)
    low, high = laws["raw", "saturating"]["floor_interval"]
    assert low < 30 < high
    assert [one["extrapolates"] for law in found["laws"] for one in law["predictions"]] == [True] * 4
    assert {one["corpus"]: one["preferred"] for one in found["held_out"]} == {
        "raw": "saturating",
        "refined": "saturating",
    }
    assert [(d["a"], d["b"], d["law"], d["paired"]) for d in found["differences"]] == [
        ("raw", "refined", "power", True),
        ("raw", "refined", "saturating", True),
    ]
    assert found["differences"][0]["efficiency"] > 1
    assert "3 seeds" in " ".join(found["notes"])


def test_a_law_from_two_points_has_no_interval_and_a_trivial_r2(capsys: pytest.CaptureFixture[str]) -> None:
    """R2 = 1 of two points is marked as trivial, in tables and in JSON."""
    found = as_json(EXAMPLES / "E4.csv", capsys)
    assert [law["alpha_interval"] for law in found["laws"]] == [None, None]
    assert sum("R2 is no evidence here" in note for note in found["notes"]) == 2
    show(fit_points(EXAMPLES / "E4.csv"))
    assert capsys.readouterr().out.count("(trivial)") == 2


def test_tables_hold_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Alpha with its interval, A, R2, the reduction per doubling, and a mark on extrapolations."""
    show(fit_points(EXAMPLES / "E1.csv", [20000, 1e6]))
    shown = capsys.readouterr().out
    plain = shown.replace(MINUS, "-").replace("\N{NO-BREAK SPACE}", " ")
    for part in ("-0.7143 (-1.0106 to -0.4180)", "2,264,935", "0.9818", "39.05 %", "117.25"):
        assert part in plain
    assert [("extrapolates" in line) for line in shown.splitlines() if line.strip().startswith("power  ")][1:] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "has no header"),
        ("# my run\n# of today\n", "has no header"),
        ("tokens,ppl\n", "no rows"),
        ("# my run\nsteps|tokens\n1|2\n", "no column tokens in row 2 (found: steps|tokens)"),
        ("tokens,value\n1,2\n", "no column ppl"),
        ("tokens,ppl,ppl\n1,2,3\n", "2 columns named ppl"),
        ("tokens,ppl\n1,2\n2,3,4\n", "row 3 has more fields than the header, 2"),
        ("tokens,ppl\n10,000,500\n", "row 2 has more fields than the header, 2: write a number that holds a separator"),
        ("Tokens,TOKENS,ppl\n1,2,3\n", "2 columns named tokens"),
        ("tokens,ppl\n1000,9\n\n2000,about 8\n", "row 4, column ppl: 'about 8'"),
        ("tokens,ppl\n1000,9\n2000\n", "row 3, column ppl: it is empty"),
        ('tokens,ppl\n"34,95",9\n', "row 2, column tokens: '34,95'"),
        ('tokens,ppl\n"3,495,12",9\n', "row 2, column tokens: '3,495,12'"),
        ('tokens,ppl\n3495,"1,234"\n', "row 2, column ppl: '1,234'"),
        ("tokens,ppl\n0,9\n", "row 2, column tokens: '0'"),
        ("tokens,ppl\n1000,-9\n", "row 2, column ppl: '-9'"),
        ("tokens,ppl\n1000,nan\n", "row 2, column ppl: 'nan'"),
        ("tokens,ppl\n1000,inf\n", "row 2, column ppl: 'inf'"),
        ("tokens,ppl\n1000,1e999\n", "row 2, column ppl: '1e999'"),
        ("tokens,ppl,seed\n1000,9,1\n2000,8,\n", "row 3, column seed: it is empty"),
        ("tokens,ppl,seed\n1000,9,a\n", "row 2, column seed: 'a'"),
        ("tokens,ppl,corpus\n1000,9,raw\n2000,8,\n", "row 3, column corpus: it is empty"),
        ("tokens,ppl,seed\n1000,9,1\n1000,8,1\n", "seed 1 has 2 points at 1,000 tokens"),
        ("tokens,ppl,seed\n1000,9,1\n2000,8,1\n1000,9,2\n", "seed 2 has no point at 2,000 tokens"),
        ("tokens,ppl\n1000,9\n", "2 or more token budgets, not 1"),
        ("tokens,ppl,corpus\n1000,9,raw\n", "raw: a power law needs"),
    ],
)
def test_a_bad_table_is_one_sentence(csv: Callable[[str], Path], text: str, message: str) -> None:
    """The sentence names the file, and the row and column if there is one."""
    file = csv(text)
    with pytest.raises(ScalingError) as error:
        fit_points(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("made", [b"\xff\xfa\x00PK", b'tokens,ppl\n"1,2\n3,4\n'])
def test_what_is_no_csv_is_one_sentence(tmp_path: Path, made: bytes) -> None:
    """Neither bytes nor an open quote end in a traceback."""
    file = tmp_path / "x.csv"
    file.write_bytes(made)
    with pytest.raises(ScalingError, match="cannot be read as CSV"):
        read(file)
    with pytest.raises(ScalingError, match="is not a file"):
        read(tmp_path / "missing.csv")


def test_spaces_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """What spreadsheets add is ignored."""
    file = tmp_path / "x.csv"
    file.write_bytes(b"\xef\xbb\xbftokens, ppl\r\n 1000 , 9\r\n\r\n2000, 8 \r\n")
    assert read(file)[None].ppl.tolist() == [9, 8]


@pytest.mark.parametrize(
    "text",
    [
        "Tokens,PPL\n10000,1234.5\n20000,38\n",
        '"TOKENS","Seed"," ppl "\n10000,,1234.5\n20000,,38\n',
        "# my run\n#\n\ntokens,ppl\n10000,1234.5\n# restarted here, with another seed\n20000,38\n",
        "# tokens,ppl\n10000,1234.5\n20000,38\n",
        "run;Tokens;ppl\nx;10 000;1 234.5\nx;20\u202f000;38\n",
        "tokens\tppl\n10_000\t1'234.5\n2e4\t38\n",
        'tokens,ppl\n"10,000","1,234.5"\n"20,000.0",38\n',
    ],
)
def test_a_table_of_ones_own_is_read(csv: Callable[[str], Path], text: str) -> None:
    """Names in any case, comment lines, the separators of spreadsheets, thousands separators that mean one number."""
    points = read(csv(text))[None]
    assert (points.tokens.tolist(), points.ppl.tolist()) == ([10000, 20000], [1234.5, 38])


BUDGETS = (10_000, 20_000, 40_000, 80_000, 160_000)


def table(row: int, tokens: float, ppl: float, seeds: int = 1) -> str:
    """A table of a power law with 1 % of scatter, one of whose rows has other numbers by these factors."""
    draw, rows = np.random.default_rng(5), ["tokens,ppl,seed"]
    for number, (seed, budget) in enumerate(product(range(seeds), BUDGETS), 2):
        slip = (tokens, ppl) if number == row else (1, 1)
        value = 19e3 * budget**-0.4 * np.exp(draw.normal(0, 0.01)) * slip[1]
        rows.append(f"{budget * slip[0]:g},{value:.3f},{seed if seeds > 1 else ''}")
    return "\n".join(rows)


@pytest.mark.parametrize("row", [2, 4, 6])
@pytest.mark.parametrize(("tokens", "ppl"), [(1e4, 1), (1e-4, 1), (1, 1e4), (10, 1)])
def test_a_slip_is_named_by_its_row_with_the_law_without_it(
    csv: Callable[[str], Path], row: int, tokens: float, ppl: float
) -> None:
    """A factor of 10,000 in either column, at any place; the law given is that of the other points, by `fit`."""
    slip, *_ = fit_points(csv(table(row, tokens, ppl))).notes
    assert slip.startswith(f"row {row} (")
    good = read(csv("\n".join(line for at, line in enumerate(table(row, tokens, ppl).splitlines(), 1) if at != row)))
    assert f"without it alpha is {MINUS}{-fit(good[None]).alpha:.4f}" in slip


def test_a_slip_is_named_even_if_no_law_can_be_fitted(csv: Callable[[str], Path]) -> None:
    """Seeds must have the same budgets; the error says which row is at fault."""
    with pytest.raises(ScalingError, match=r"seed 1 has no point .*; row 9 \(400,000,000 tokens, PPL .*contradicts"):
        fit_points(csv(table(9, 1e4, 1, seeds=3)))


@pytest.mark.parametrize("name", ["E1", "E2", "E3", "E4"])
def test_no_measured_point_is_taken_for_a_slip(name: str) -> None:
    """The tables of the examples."""
    assert "contradicts" not in "".join(fit_points(EXAMPLES / f"{name}.csv").notes)


def test_a_floor_is_no_slip() -> None:
    """Three points, a flat line, and 400 tables whose last point shows a floor, with up to 10 % of scatter."""
    assert contradiction(Points(np.array(BUDGETS[:3]), np.array([500, 380, 1e6]))) is None
    assert contradiction(Points(np.array(BUDGETS), np.full(5, 9))) is None
    draw, budgets = np.random.default_rng(7), np.array([*BUDGETS, 3e5, 1e6, 1e7])
    for noise in [0.0, 0.001, 0.01, 0.1] * 100:
        ppl = (20 + 9e4 * budgets**-0.6) * np.exp(draw.normal(0, noise, len(budgets)))
        assert contradiction(Points(budgets, ppl)) is None


@pytest.mark.parametrize(("factor", "named"), [(1.49, False), (1.51, True)])
def test_a_contradiction_is_a_factor_of_one_and_a_half(factor: float, named: bool) -> None:
    """Less is scatter, however exact the others are."""
    ppl = 19e3 * np.array(BUDGETS) ** -0.4
    ppl[2] *= factor
    found = contradiction(Points(np.array(BUDGETS), ppl))
    assert (found is not None) is named
    assert not found or (found.index, round(found.expected, 6)) == (2, round(ppl[2] / factor, 6))


@given(st.text(st.sampled_from("tokens,pl\n\"'0123456789.-e;\t \0é"), max_size=60))
def test_any_text_is_points_or_a_sentence(text: str) -> None:
    """Every file gives points or a ScalingError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.csv"
        file.write_text("tokens,ppl\n" + text)
        message = ""
        try:
            made = read(file)
        except ScalingError as error:
            made, message = {}, str(error)
    assert message.startswith(str(file)) or all(len(found.tokens) for found in made.values())


def test_every_number_of_the_examples_page_is_recomputed() -> None:
    """Each number on the page is computed here from the files, or is one that the summary prints."""
    page = (EXAMPLES / "README.md").read_text()
    computed, printed = _computed(), _printed()
    unexplained = [
        n for n in re.findall(r"(?<![\w.^,])[-+]?\d[\d,]*(?:\.\d+)?", page) if n.strip(",") not in computed | printed
    ]
    assert not unexplained
    for number in computed:
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", page), f"{number} is computed and not on the page"


def _computed() -> set[str]:
    """The page's numbers, computed from the files."""
    e1, e2 = (read(EXAMPLES / f"{name}.csv")[None] for name in ("E1", "E2"))
    e3, e4 = (read(EXAMPLES / f"{name}.csv") for name in ("E3", "E4"))
    twos = [e3["A"], e3["B"], e4["A"], e4["B"]]
    laws = [fit(one) for one in (e1, e2, *twos)]
    made = {f"{law.per_doubling:.2%}"[:-1] for law in laws}
    made |= {f"{1 - one.ppl[1] / one.ppl[0]:.2%}"[:-1] for one in twos}
    for law in (laws[0], laws[1], laws[4], laws[5]):
        made |= {f"{law.alpha:.4f}", f"{np.exp(law.ln_A):,.0f}"}
    for law in laws[:2]:
        assert law.alpha_interval
        made |= {f"{law.r2:.4f}", *(f"{end:.4f}" for end in law.alpha_interval)}
    for law, summary in zip(laws[2:4], (14504, 46791), strict=True):
        made |= {f"{np.exp(law.ln_A):,.2f}", f"{law.alpha:.5f}", f"{summary / np.exp(law.ln_A) - 1:+.1%}"[:-1]}
    for law in laws[4:]:
        made |= {f"{one.value:.2f}" for one in law.predict([5e5, 1e6, 5e6, 1e7])}
    step = e4["A"].tokens[1] / e4["A"].tokens[0]
    made |= {f"{step:.4f}", f"{laws[5].alpha - laws[4].alpha:.4f}", f"{laws[2].alpha:.3f}", f"{laws[3].alpha:.3f}"}
    made |= {f"{error * np.sqrt(2) / np.log(step):.3f}" for error in (0.01, 0.03)}
    apart = difference(e1, e2)
    assert apart.delta_alpha_interval
    made |= {f"{one:.4f}" for one in (apart.delta_alpha, *apart.delta_alpha_interval)}
    return made | {_rounded(name) for name in ("E1", "E2")} | {f"{laws[0].alpha:.2f}", f"{laws[1].alpha:.2f}"}


def _rounded(name: str) -> str:
    frame = pl.read_csv(EXAMPLES / f"{name}.csv")
    assert frame["ppl"].round(0).to_list() == frame["printed_ppl"].to_list()
    law: Law = fit(Points(frame["tokens"].cast(float).to_numpy(), frame["printed_ppl"].cast(float).to_numpy()))
    return f"{np.exp(law.ln_A):,.0f}"


def _printed() -> set[str]:
    """The numbers that the summary of 2025-11-28 prints, and the page's labels: dates, sections, counts, budgets."""
    summary = "38 40 22 30 14,504 46,791 -0.287 -0.385 18,890 19,519 -0.72 -0.75 383 314 213 175 392 323 221 182 0.0"
    labels = "2025 -11 -28 11 27 28 1 2 3 4 6 95 500 1,000 500,000 1,000,000 5,000,000 10,000,000"
    return {*summary.split(), *labels.split(), *labels.replace(",", "").split()}


def test_a_share_of_nothing_has_no_sign() -> None:
    """A bound of an interval that begins at 0 is -0.0 from the other side."""
    assert (share(-0.0), share(0.0), share(0.5)) == ("0.00\u00a0%", "0.00\u00a0%", "50.00\u00a0%")
