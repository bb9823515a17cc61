"""The command line: fast to answer, every example runs, every user's error is one sentence."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Refine, call, chat, start

pytestmark = pytest.mark.usefixtures("no_pictures")

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
Jsonl = Callable[..., Path]
COMMANDS = [
    *("run", "decide", "show", "report", "train", "scale", "compare", "ablate"),
    *("dedup", "signals", "stages", "plan", "status", "plant", "audit", "search", "push", "score", "distill"),
]


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    """The child's processor seconds, which a busy machine does not stretch as it stretches wall time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert start("--help", cwd=ROOT).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


HEAVY = ["torch", "transformers", "polars", "pyarrow", "datasets", "numba", "numpy", "kenlm", "fasttext", "rich.table"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["compare", "--help"], ["rnu"]])
def test_no_heavy_module_is_imported_for_help(words: list[str]) -> None:
    """Torch, polars and their kind are imported only by a command that does something."""
    code = (
        f"import sys; sys.argv = ['refine', *{words!r}]\nfrom pipeline.cli import main\ntry: main()\n"
        f"except SystemExit: print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_version_and_the_options_of_every_command_are_in_the_help(refine: Refine) -> None:
    """The version is the package's; an option that is shown is accepted before and after the command."""
    from pipeline import VERSION

    assert refine("--version").stdout == f"refine {VERSION}\n"
    text = refine("--help").stdout
    for option in ("--version", "--debug", "--quiet", "--log-file", "--install-completion"):
        assert option in text
    for words in (["--quiet", "plan"], ["plan", "--quiet"]):
        assert refine(*words).returncode == 0


def test_no_help_shows_a_type_instead_of_a_name(refine: Refine) -> None:
    """`--workers N`, never `--workers <int range>`; `<path>` and `<str>` say no more."""
    for command in (*COMMANDS, "transfer extract", "transfer apply"):
        lines = [line for line in refine(*command.split(), "--help").stdout.splitlines() if line.startswith("  -")]
        assert not [line for line in lines if re.search(r"<\w+( \w+)?>", line)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "no such command 'rnu'; did you mean 'run'?"),
        (["run", "--wrokers", "3"], "no such option --wrokers; did you mean --workers?"),
        (["status", "--frobnicate"], "no such option: --frobnicate (refine status --help lists what there is)"),
        (["show"], "missing argument 'RUN'"),
        (["transfer"], "missing command (refine transfer --help lists what there is)"),
        (["transfer", "extrat"], "no such command 'extrat'; did you mean 'extract'?"),
        (["transfer", "extract", "a"], "missing argument 'TUNED'"),
        (["run", "--workers", "many"], "invalid value for '--workers'"),
        (["plan", "--log-file"], "option '--log-file' requires an argument"),
    ],
)
def test_a_mistyped_command_is_one_sentence_with_what_was_meant(refine: Refine, words: list[str], message: str) -> None:
    """Exit code 2, as everywhere."""
    done = refine(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    """The script that is installed asks `refine` itself what can follow."""
    named = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # tests may have no shell
    done = start("--install-completion", "bash", cwd=tmp_path, **named)
    assert done.returncode == 0, done.stderr
    assert "_REFINE_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "refine.sh").read_text()
    asked = {"_REFINE_COMPLETE": "complete_bash", "COMP_WORDS": "refine sta", "COMP_CWORD": "1"}
    assert start(cwd=tmp_path, **asked).stdout.split() == ["stages", "status"]


def test_quiet_silences_progress_and_a_log_file_keeps_it(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Errors are printed in any case; the log has the same lines as stderr without --quiet."""
    source = jsonl([chat(i) for i in range(20)])
    words = ["run", source, "--plan", TOY, "--workers", 1]
    loud = refine(*words, "--out", "a").stderr
    assert "records of shape ultrachat" in loud
    assert refine(*words, "--out", "b", "--quiet", "--log-file", "log.txt").stderr == ""
    plain = [re.sub(r"[\d.]+ s$", "", line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert plain == [re.sub(r"[\d.]+ s$", "", line) for line in loud.splitlines()]
    failed = refine("show", "nowhere", "--quiet", "--log-file", "log.txt").stderr
    assert failed.count("\n") == 1
    assert (tmp_path / "log.txt").read_text().endswith(failed)
    assert "records of shape" in refine(*words, "--out", "c").stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs and a table `points.csv`, as the examples of the help texts suppose."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "points.csv").write_text("tokens,ppl\n1000,900\n2000,700\n4000,520\n8000,410\n")
    for words in (
        ("plant", "chitchat", "--limit", "200", "--out", "planted"),
        ("run", "planted", "--stages", "heuristics", "--out", "damaged-run"),
        ("run", "chitchat", "--stages", "heuristics", "--limit", "200", "--out", "my-run"),
    ):
        done = call(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "command", [*(c for c in COMMANDS if c not in {"distill", "score", "search", "train"}), ""]
)  # tried elsewhere
def test_every_help_text_has_an_example_that_runs(refine: Refine, made: Path, command: str) -> None:
    """The line after "Example:" is run as it stands."""
    text = " ".join(refine(*filter(None, [command]), "--help").stdout.split())
    found = re.search(r"Example: refine (.*?)(?: \(|$)", text)
    assert found, text
    words = found[1].split(" > ")[0]
    done = refine(*re.findall(r'"[^"]*"|\S+', words), cwd=made) if '"' not in words else shell(made, words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def shell(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    """An example with quotes, as a shell splits it."""
    return subprocess.run(
        ["sh", "-c", f"{sys.executable} -m pipeline.cli {words}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_commands_are_tested() -> None:
    """A command that is added is added here."""
    from pipeline.cli import app

    assert sorted(str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "./nowhere"], "no such source: './nowhere'"),
        (["run", "--stages", "dedupe"], "unknown stage 'dedupe': did you mean 'dedup'?"),
        (["run", "--stages", "heuristics", "--drop", "wrds < 3"], "no stage writes the column 'wrds'"),
        (["run", "--shape", "cube"], "--shape is 'cube'"),
        (["run", "--plan", "none.toml"], "plan none.toml cannot be read"),
        (["decide", "nowhere"], "there is no folder nowhere"),
        (["show", "nowhere"], "there is no folder nowhere"),
        (["signals", "nowhere"], "there is no folder nowhere"),
        (["plan", "--log-file", "nowhere/log"], "nowhere/log: No such file or directory"),
        (["status", "nowhere"], "there is no folder nowhere"),
        (["run", "--plan", TOY, "--out", "/proc/none"], "/proc/none"),
    ],
)
def test_a_users_error_is_one_sentence(refine: Refine, words: list[object], message: str) -> None:
    """On stderr, exit code 1, no traceback."""
    done = refine(*words)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["signals", "r", "--out", "s3://b/signals.csv"],
        ["report", "r", "--out", "gs://b/report"],
        ["plant", "--out", "az://b/damaged"],
        ["dedup", "r", "--removed", "s3://b/removed.parquet"],
        ["train", "--out", "s3:/b/trained"],
        ["compare", "--work", "s3://b/work"],
        ["score", "m", "--out", "s3://b/scores.json"],
    ],
)
def test_only_a_run_is_written_to_a_bucket(tmp_path: Path, words: list[str]) -> None:
    """Other commands would make a folder named `s3:` here."""
    done = start(*words, cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "is a URL, expected a path: only `refine run` writes to a bucket" in done.stderr


@pytest.mark.parametrize("words", [["--debug", "status", "nowhere"], ["status", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(tmp_path: Path, words: list[str]) -> None:
    """Before and after the command."""
    done = start(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RunFolderError: there is no folder nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "Failing",
            "stage 'tests.pipeline.toy_stages:Failing' failed on r/raw/00000.parquet: KeyError: 'no such thing'",
        ),
        ("Lying", "wrote 39 rows for the 40 of r/raw/00000.parquet"),
        ("Modelled", "the model toy.bin is not there: put it in the folder models/"),
        ("Killed", ".parquet was killed by the system 4 times"),
        ("KilledFit", " was killed by the system 4 times"),
    ],
)
@pytest.mark.usefixtures("workers_at_once")
def test_a_stage_that_fails_is_one_sentence(refine: Refine, jsonl: Jsonl, stage: str, message: str) -> None:
    """Stage, shard and reason; the run goes on when what failed is fixed."""
    source = jsonl([chat(i) for i in range(100)])
    words = ["run", source, "--out", "r", "--shard-rows", 40, "--workers", 2 if "Killed" in stage else 1]
    done = refine(*words, "--stages", f"tests.pipeline.toy_stages:{stage}")
    assert done.returncode == 1
    assert message in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr
    assert refine(*words, "--stages", "tests.pipeline.toy_stages:Words").returncode == 0


def test_a_model_that_is_missing_is_said_before_any_work(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Nothing is ingested for a plan that cannot be carried out, and --dry-run says so too."""
    source = jsonl([chat(1)])
    words = ["run", source, "--out", "r", "--stages", "tests.pipeline.toy_stages:Modelled"]
    assert refine(*words).returncode == 1
    assert not (tmp_path / "r").exists()
    done = refine(*words, "--dry-run", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["stages"][0]["state"].startswith("the model toy.bin is not there")


def test_a_dry_run_writes_nothing(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """What would be done comes first, in one line; signals are counted, and named on request."""
    words = ["run", jsonl([chat(1)]), "--plan", TOY, "--dry-run", "--out", "r"]
    done = refine(*words)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert re.fullmatch(r"would refine \S+/corpus.jsonl \(ultrachat\) into r: 3 stages, 4 signals, 3 rules", first)
    assert second == "can run: nothing is missing"
    assert "words < 12" in done.stdout
    assert "copy_of" not in done.stdout
    assert "copy_of" in refine(*words, "--verbose").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_dry_run_says_what_is_missing(refine: Refine, jsonl: Jsonl) -> None:
    """Exit code 1, and the reason in the second line."""
    done = refine("run", jsonl([{"foo": 1}]), "--plan", TOY, "--dry-run", "--out", "r")
    assert done.returncode == 1
    assert re.match(
        r"cannot run: corpus.jsonl: a record with foo has none of the known shapes", done.stdout.splitlines()[1]
    )


def test_a_dry_run_refuses_what_the_run_would(refine: Refine, jsonl: Jsonl) -> None:
    """The folder of another source, in the same words, and records that a bucket cannot take as they came."""
    words = ["--plan", TOY, "--out", "r"]
    assert refine("run", jsonl([chat(1)]), *words).returncode == 0
    assert refine("run", jsonl([chat(1)]), *words, "--dry-run").returncode == 0
    real = refine("run", jsonl([chat(2)]), *words)
    dry = refine("run", jsonl([chat(2)]), *words, "--dry-run")
    assert "belongs to another run: its digest is" in dry.stderr
    assert (dry.stderr, dry.returncode) == (real.stderr, real.returncode)
    words[-1] = "s3://bucket/run"
    done = refine("run", jsonl([chat(1)]), *words, "--as", "source", "--dry-run")
    assert (done.returncode, "--as source writes files of this machine" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        ([b"no JSON", chat(1)], [], "can run: nothing is missing"),
        ([], [], "holds no rows: nothing to refine"),
        (
            [chat(1)],
            ["--shape", "sharegpt"],
            "none of the first rows can be read as sharegpt; the first: corpus.jsonl, row",
        ),
        ([chat(1)], ["--map", "messages=chat"], "(the record has no column 'chat', which the map names)"),
    ],
)
def test_a_dry_run_reads_records_as_the_run_does(
    refine: Refine, jsonl: Jsonl, lines: list[object], words: list[str], said: str
) -> None:
    """It can be done if the run finds a record that it can read, and not otherwise."""
    done = refine("run", jsonl(lines), *words, "--plan", TOY, "--dry-run", "--out", "r")
    assert said in done.stdout.splitlines()[1]
    assert done.returncode == (said != "can run: nothing is missing")


def test_plan_as_json_is_the_plan(refine: Refine) -> None:
    """With every parameter, and read as the same plan."""
    from pipeline import plan as planning

    tables = json.loads(refine("plan", "--json").stdout)
    assert planning.read(tables, "JSON") == planning.load(planning.DEFAULT)
    assert {stage["use"] for stage in tables["stage"]} == {each.name for each in planning.load(planning.DEFAULT).stages}


def test_plans_have_names(refine: Refine, jsonl: Jsonl) -> None:
    """They are listed, printed as they are, used in a run and a decision, and a wrong name is one sentence."""
    from pipeline import plan as planning

    listed = refine("plan", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()[-5:]] == list(planning.named())
    assert json.loads(refine("plan", "--list", "--json").stdout) == planning.named()
    assert refine("plan", "--plan", "strict").stdout == planning.find("strict").read_text()
    tables = json.loads(refine("plan", "--plan", "sft", "--json").stdout)
    assert planning.read(tables, "JSON") == planning.load(planning.find("sft"))
    done = refine("run", jsonl([chat(i) for i in range(3)]), "--plan", "sft", "--stages", "heuristics", "--out", "r")
    assert (done.returncode, "- no_user " in done.stdout) == (0, True)
    wrong = refine("decide", "r", "--plan", "utrachat")
    assert (wrong.returncode, "did you mean 'ultrachat'?" in wrong.stderr) == (1, True)


def test_decide_says_which_rules_it_replaces(refine: Refine, jsonl: Jsonl) -> None:
    """A rule of an earlier --drop no longer applies, and a sentence reports it; rules of the plan stay."""
    assert refine("run", jsonl([chat(i) for i in range(20)]), "--plan", TOY, "--out", "r").returncode == 0
    sentence = "refine: rules of an earlier --drop no longer apply: "
    assert sentence not in refine("decide", "r", "--drop", "words < 5", "--drop", "words > 90").stderr
    assert f"{sentence}words < 5, words > 90\n" in refine("decide", "r", "--drop", "words < 6").stderr
    assert f"{sentence}words < 6\n" in refine("decide", "r").stderr
    assert sentence not in refine("decide", "r").stderr


def test_two_runs_in_one_folder_at_once_are_refused(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """The second says that the folder is in use."""
    from pipeline.ownership import lock_run
    from pipeline.store import Store

    with lock_run(Store(tmp_path / "r")):
        done = refine("run", jsonl([chat(1)]), "--plan", TOY, "--out", "r")
        assert refine("status", "r", "--json").returncode == 1  # nothing claimed it yet
    assert done.returncode == 1
    assert "r is in use by another refine process" in done.stderr


@pytest.mark.skipif(shutil.which("mount") is None or os.getuid() != 0, reason="a small disk needs root to mount it")
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """ENOSPC leaves nothing half-written; with room the same command completes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    source = jsonl([{"text": os.urandom(400).hex()} for _ in range(3000)])
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("this machine does not let a test mount a disk")
    words = [
        "run",
        source,
        "--stages",
        "tests.pipeline.toy_stages:Words",
        "--out",
        disk / "r",
        "--shard-rows",
        500,
        "--workers",
        1,
    ]
    try:
        done = refine(*words)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        assert not list((disk / "r").rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        assert refine(*words).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_show_gives_the_reason_and_never_runs_text(refine: Refine, jsonl: Jsonl) -> None:
    """Terminal escapes, direction overrides and markup of a corpus are shown, not obeyed."""
    hostile = "\x1b[31m\x1b]0;owned\x07 [bold]red[/bold] \u202egnp.exe \x00 <script>alert(1)</script>"
    records = [{"id": "\x1b[2J", "messages": [{"role": "us\x1b[0mer", "content": hostile}], "source": "\x1b[5m| <b>"}]
    assert refine("run", jsonl([*records, *(chat(i) for i in range(20))]), "--plan", TOY, "--out", "r").returncode == 0
    done = refine("show", "r", "--reason", "too_short", "-n", "50", "--full")
    assert done.returncode == 0, done.stderr
    assert "dropped: too_short [words < 12]" in done.stdout
    assert "[bold]red[/bold]" in done.stdout
    assert not set(done.stdout) & {"\x1b", "\x07", "\x00", "\u202e"}
    identity = json.loads(refine("show", "r", "--reason", "too_short", "--json").stdout)[0]["id"]
    one = json.loads(refine("show", "r", "--id", identity, "--json").stdout)[0]
    assert one["signals"]["words"] < 12
    assert one["fired"][0] == "too_short"
    assert "holds no conversation 'nobody'" in refine("show", "r", "--id", "nobody").stderr
    assert "there are too_short, far_too_long, duplicate" in refine("show", "r", "--reason", "x").stderr


def test_the_card_keeps_markup_of_names_as_text(jsonl: Jsonl, refine: Refine, tmp_path: Path) -> None:
    """A file's name cannot put a table cell, a link or HTML into the dataset card."""
    source = jsonl([chat(i) for i in range(20)], name="a|<img src=x>`[x](y).jsonl")
    assert refine("run", source, "--plan", TOY, "--out", "r").returncode == 0
    card = (tmp_path / "r" / "README.md").read_text()
    assert "<img" not in card.replace("\\<img", "").replace("`a\\|<img src=x>'[x](y).jsonl`", "")


def test_status_tells_how_far_runs_are(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """A complete run, an interrupted one, and none; those in the current folder too, and any number by name."""
    assert "no runs in data/runs or the current folder" in refine("status").stdout
    source = jsonl([chat(i) for i in range(20)])
    assert refine("run", source, "--plan", TOY).returncode == 0
    (made,) = (tmp_path / "data" / "runs").iterdir()
    assert made.name.startswith("corpus-")
    assert json.loads(refine("status", "--json").stdout)[0]["state"] == "complete"
    (made / "manifest.json").unlink()
    assert json.loads(refine("status", "--json").stdout)[0]["state"] == "interrupted"
    for name in ("b", "a"):
        assert refine("run", source, "--plan", TOY, "--out", name).returncode == 0
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "source.json").write_text("{}")  # another program's
    everything = [made.relative_to(tmp_path).as_posix(), "a", "b"]
    assert [run["run"] for run in json.loads(refine("status", "--json").stdout)] == everything
    assert [run["run"] for run in json.loads(refine("status", "b", "a", "--json").stdout)] == ["b", "a"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no')", "cannot be loaded: RuntimeError: no"),
        ("def", "cannot be loaded: SyntaxError"),
        ("class Mine(Stage):\n    summary = 's'", "the class has no `writes`"),
        (
            "class Mine(Stage):\n    summary = 's'\n    writes = {}\n    reads = ('nope',)",
            "reads nope; a stage can read",
        ),
        (
            "@dataclass(frozen=True)\nclass Mine(Stage):\n    size: int\n    summary = 's'\n    writes = {}",
            "needs a default",
        ),
        ("class Mine(GlobalStage):\n    summary = 's'\n    writes = merges = {}", "does not implement merge"),
    ],
)
def test_a_users_broken_stage_is_one_sentence(refine: Refine, tmp_path: Path, code: str, message: str) -> None:
    """It is never called a fault of refine, and no shard is blamed."""
    head = "from dataclasses import dataclass\nfrom stages.stage import GlobalStage, Stage\n"
    (tmp_path / "mine.py").write_text(head + code + "\n")
    done = refine("run", "--stages", "mine:Mine", "--limit", 5)
    assert done.returncode == 1
    assert message in done.stderr
    assert "fault of refine" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("use", ["../../x:Y", ".x:Y", ":Y", "x:"])
def test_a_stage_is_named_by_identifiers(refine: Refine, use: str) -> None:
    """A name can never become a path."""
    assert "expected module:Class" in refine("run", "--stages", use).stderr


def test_a_changed_stage_of_the_user_is_measured_again(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Nobody raises a version while trying things out."""
    source = jsonl([chat(i) for i in range(30)])
    code = "import polars as pl\nfrom stages.stage import Stage\nclass Mine(Stage):\n    summary = 's'\n"
    code += "    writes = pl.Schema({'a': pl.Int64()})\n    def measure(self, batch):\n"
    code += "        return batch.select(a=pl.col('text').str.len_chars().cast(pl.Int64) * FACTOR)\n"
    rejected = []
    for factor in ("1", "00"):
        (tmp_path / "mine.py").write_text(code.replace("FACTOR", factor))
        done = refine("run", source, "--stages", "mine:Mine", "--drop", "a < 5", "--out", "r", "--json")
        rejected.append(json.loads(done.stdout)["rejected"])
    assert rejected == [0, 30]


def test_a_folder_of_something_else_is_not_touched(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Not even files that look like leftovers, and no lock is put there."""
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    for name in ("sub/.precious.tmp", ".x.1.tmp", "doc.txt"):
        (home / name).write_text("mine")
    before = sorted(path.name for path in home.rglob("*"))
    done = refine("run", jsonl([chat(1)]), "--plan", TOY, "--out", home)
    assert done.returncode == 1
    assert "is not a run folder: it holds" in done.stderr
    assert sorted(path.name for path in home.rglob("*")) == before
    assert refine("run", jsonl([chat(1)]), "--plan", TOY, "--out", "home/doc.txt").returncode == 1


def test_a_run_never_writes_through_a_link(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """A lock or a folder that is a link to something outside is refused, and what it points to stays."""
    source = jsonl([chat(i) for i in range(9)])
    (tmp_path / "victim").write_text("important")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to("../victim")
    assert refine("run", source, "--plan", TOY, "--out", "a").returncode == 1
    assert (tmp_path / "victim").read_text() == "important"
    assert refine("run", source, "--plan", TOY, "--out", "b").returncode == 0
    shutil.rmtree(tmp_path / "b" / "refined")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b" / "refined").symlink_to("../elsewhere")
    assert "is a link" in refine("run", source, "--plan", TOY, "--out", "b").stderr
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_it_goes_on(
    refine: Refine, jsonl: Jsonl, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C to the whole group, as a terminal sends it: one sentence, 130, and no tracebacks of workers."""
    source = jsonl([chat(i) for i in range(4000)])
    words = [
        "run",
        source,
        "--stages",
        "tests.pipeline.toy_stages:Slow",
        "--out",
        "r",
        "--shard-rows",
        "40",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/signals/*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "refine: stopped; what is complete is kept" in stderr
    assert "Traceback" not in stderr
    assert "leaked" not in stderr
    assert json.loads(refine("status", "r", "--json").stdout)[0]["state"] == "interrupted"


def test_compare_finds_the_run_that_finished_last(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """In data/runs/ or in the current folder, where --out put it; one that is not complete is passed over."""
    source = jsonl([chat(i) for i in range(40)])
    for number, words in enumerate([[], ["--out", "here"], ["--out", "half"]]):
        assert refine("run", source, "--plan", TOY, "--workers", 1, *words).returncode == 0
        for manifest in tmp_path.rglob("manifest.json"):
            if manifest.stat().st_mtime > 1e6:
                os.utime(manifest, (number, number))
    (tmp_path / "half" / "manifest.json").unlink()
    assert json.loads(refine("compare", "--no-train", "--json").stdout)["run"] == "here"
    os.utime(next((tmp_path / "data" / "runs").iterdir()) / "manifest.json", (9, 9))
    assert json.loads(refine("compare", "--no-train", "--json").stdout)["run"].startswith("data/runs/corpus-")
