"""The documents are true: their examples run, their links lead somewhere, and they name everything there is."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from importlib.metadata import files, metadata
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import stages
from pipeline import VERSION
from pipeline import plan as planning
from pipeline.cli import app
from pipeline.rules import Drop
from pipeline.rules import check as check_rules
from pipeline.sources.shapes import SHAPES
from stages.stage import GlobalStage
from tests.conftest import ROOT, chat
from tests.conftest import command as get_command
from trainer.presets import PRESETS

pytestmark = pytest.mark.usefixtures("no_pictures")

DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "reports/README.md", "pipeline/README.md"),
    "pipeline/deploy.md",
    *("stages/README.md", "trainer/README.md", "trainer/examples/README.md", "tests/bench/README.md"),
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
GUIDES = [name for name in DOCUMENTS if re.search(r"^```(console|python)$", TEXTS[name], re.MULTILINE)]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NETWORK = ("HuggingFaceH4/",)
"""Words of commands that need a network: they are parsed, not run."""


def blocks(name: str, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(TEXTS[name]) if language == kind]


def typed(block: str) -> list[str]:
    """The commands of `refine` in a console block."""
    lines = [line[2:].split(" # ")[0].strip() for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.startswith("refine ")]


def commands(name: str) -> list[str]:
    """Every `refine ...` that a reader would type: in console blocks, in tables and in sentences."""
    found = [command for block in blocks(name, "console") for command in typed(block)]
    return [*found, *re.findall(r"`(refine [a-z]+ [^`\n]*)`", "" if name == "CHANGELOG.md" else TEXTS[name])]


def words_of(command: str) -> list[str]:
    example = command.replace("RUN", "my-run").replace("--id ID", "--id x").replace("OUT.jsonl", "out.jsonl")
    words = shlex.split(example)[1:]
    return words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize(("name", "command"), [(name, each) for name in DOCUMENTS for each in commands(name)])
def test_every_command_can_be_typed(name: str, command: str) -> None:
    """Its options and arguments are those of the command line."""
    root = get_command(app)
    words = words_of(command)
    if words[0].startswith("-"):
        assert any(words[0] in parameter.opts for parameter in root.params), f"{name}: {command}"
        return
    sub = root.commands[words[0]]  # type: ignore[attr-defined]  # a group has commands
    sub.make_context(words[0], words[1:], resilient_parsing=False).close()


def quick(words: list[str]) -> list[str] | None:
    """The command in a form that ends in seconds, on a small corpus; None for one that needs a network or trains."""
    if any(mark in word for mark in NETWORK for word in words):
        return None
    if words[0] == "run" and "--dry-run" not in words:
        source = ["corpus/"] if len(words) == 1 or words[1].startswith("-") else []
        every = not {"--stages", "--plan"} & set(words)  # toxicity loads a network; one plan of the documents has it
        few = ["--stages", "heuristics,language,dedup,ppl"] if every else []
        enough = ["50%" if word == "1%" else word for word in words[1:]]  # of 40 conversations 1 % may be none
        return [words[0], *source, *enough, *few, "--limit", "40"]
    trains = words[0] in {"distill", "train", "score", "transfer", "scale", "compare", "ablate", "search"}
    return None if trains and not {"--no-train", "--points"} & set(words) else words


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name: corpora, an earlier version, evaluation items, results."""
    monkeypatch.chdir(tmp_path)
    chats = [chat(i, 2 + i % 3) for i in range(36)]
    frame = pl.DataFrame([*chats, *chats[:4]])
    for folder in ("corpus", "old-corpus", "new-corpus", "v1", "evals"):
        (tmp_path / folder).mkdir()
    frame.write_parquet("corpus/chats.parquet")
    frame.write_parquet("new-corpus/chats.parquet")
    frame.head(20).write_parquet("old-corpus/chats.parquet")
    frame.head(10).write_parquet("v1/chats.parquet")
    frame.write_ndjson("chats.jsonl")
    text = frame["messages"].list.eval(pl.element().struct["content"]).list.join("\n")
    table = pl.DataFrame({"id": [f"c{i}" for i in range(40)], "text": text})
    table.write_parquet("corpus.parquet")
    table.head(10).write_parquet("v1.parquet")
    (tmp_path / "evals" / "items.jsonl").write_text('{"question": "river stone lamp cloud seven walks under green"}\n')
    points = [f"{3125 * 2**i},{900 / 1.3**i},{corpus},{seed}" for i in range(5) for corpus in "ab" for seed in (0, 1)]
    (tmp_path / "points.csv").write_text("\n".join(["tokens,ppl,corpus,seed", *points]))
    shutil.copytree(ROOT / "trainer" / "examples", tmp_path / "trainer" / "examples")
    return tmp_path


def start(*words: str) -> None:
    """Run a command in this process, as a user would in the current folder."""
    code: object = 0
    try:
        app(list(words), standalone_mode=False)
    except SystemExit as stopped:
        code = stopped.code
    assert not code, f"refine {shlex.join(words)}: exit code {code}"


def start_typed(words: list[str]) -> None:
    """Run a command of a document; a run that it reads and no example made is made first."""
    writes = words[words.index("--out") + 1] if "--out" in words else ""
    if "my-run" in words and writes != "my-run" and not Path("my-run").exists():
        start("run", "corpus/", "--stages", "heuristics,language,dedup,ppl", "--out", "my-run", "--limit", "40")
    start(*words)


def execute(text: str, name: str, space: dict[str, Any]) -> None:
    """Run a Python block; one with a stage is the file that plans call `my_module`."""
    Path("my_module.py").write_text(text)
    module = import_module("my_module") if "(Stage)" in text else None
    exec(compile(text, name, "exec"), vars(module) if module else space)  # noqa: S102  our own text


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_every_example_runs(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first block of a document to the last, in one folder; a plan is saved before the commands that read it.

    Commands and calls that would train for minutes compare without training, or are only parsed.
    """
    import datasets

    import refine

    compare = refine.compare
    monkeypatch.setattr(
        refine, "compare", lambda *a, **k: compare(*a, **{**k, "screen": False, "train": False}), raising=False
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    space: dict[str, Any] = {"__name__": "example"}
    for language, text in BLOCK.findall(TEXTS[name]):
        if language == "toml":
            plan = "my-plan.toml" if "my_module" in text else "plan.toml"
            if not (place / plan).exists():
                (place / plan).write_text(text)
        elif language == "python":
            execute(text, name, space)
        elif language == "console":
            for words in filter(None, map(quick, map(words_of, typed(text)))):
                start_typed(words)


def test_the_stage_measures() -> None:
    """The first stage that a reader writes works as it stands."""
    (text,) = (block for block in blocks("stages/README.md", "python") if "class Questions" in block)
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(text.replace("@dataclass(frozen=True)\n", ""), "README", "exec"), space)  # noqa: S102  our own text
    messages = [{"role": "user", "content": "Why? How?"}, {"role": "assistant", "content": "So."}]
    assert space["Questions"]().measure(pl.DataFrame({"messages": [messages]}))["questions"].to_list() == [1.0]


def test_every_condition_is_one() -> None:
    """The examples of `where` are conditions over signals that stages write."""
    table = TEXTS["pipeline/README.md"].split("| write | example |")[1].split("\n\n")[0]
    conditions = [one for row in table.splitlines()[2:] for one in re.findall(r"`([^`]+)`", row.split("|")[2])]
    kinds = [stages.find(name) for name in stages.BUILTIN]
    signals = {name: kind for stage in kinds for name, kind in {**stage.writes, **merges(stage)}.items()}
    check_rules([Drop(f"rule {i}", where) for i, where in enumerate(conditions)], (), pl.Schema(signals), ())
    assert len(conditions) >= 8


def merges(kind: type) -> pl.Schema:
    return kind.merges if issubclass(kind, GlobalStage) else pl.Schema()


@pytest.mark.parametrize("name", ["default", "ultrachat"])
def test_the_plan_is_explained(name: str) -> None:
    """Each rule of it stands in a table, word for word."""
    for rule in planning.load(planning.find(name)).rules:
        row = next(line for line in TEXTS["pipeline/README.md"].splitlines() if line.startswith(f"| `{rule.reason}` |"))
        assert not isinstance(rule, Drop) or f"`{rule.where}`" in row


def test_each_plan_is_named() -> None:
    """In the table of plans, in their order."""
    rows = re.findall(
        r"^\| `(\w+)` \|", TEXTS["pipeline/README.md"].split("| plan | for |")[1].split("\n\n")[0], re.MULTILINE
    )
    assert sorted(rows) == sorted(planning.named())


@pytest.mark.parametrize("name", stages.BUILTIN)
def test_every_signal_and_parameter_is_documented(name: str) -> None:
    """In the section of its stage; a parameter with its default."""
    section = TEXTS["stages/README.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
    kind = stages.find(name)
    missing = [signal for signal in {**kind.writes, **merges(kind)} if f"`{signal}`" not in section]
    assert not missing
    for field in fields(kind):
        rows = [line for line in section.splitlines() if line.startswith("|") and f"`{field.name}`" in line]
        default = (
            str(list(field.default)) if isinstance(field.default, tuple) else f"{field.default!r}".replace("'", '"')
        )
        assert any(f"`{default}`" in row for row in rows), f"{field.name} = {default}"


def test_everything_is_named() -> None:
    """Each command, shape, preset and bench is in the document that is about it."""
    both = TEXTS["pipeline/README.md"] + TEXTS["trainer/README.md"] + TEXTS["stages/README.md"]
    assert [name for name in get_command(app).commands if f"refine {name}" not in both] == []  # type: ignore[attr-defined]
    assert [name for name in SHAPES if f"| `{name}` |" not in TEXTS["pipeline/README.md"]] == []
    assert [name for name in PRESETS if f"| `{name}` |" not in TEXTS["trainer/README.md"]] == []
    benches = [path.stem for path in (ROOT / "tests" / "bench").glob("[a-z]*.py")]
    assert [name for name in benches if f"`{name}`" not in TEXTS["tests/bench/README.md"]] == []


def test_the_make_targets_are_there() -> None:
    """Two commands set up a fresh machine."""
    makefile = Path(ROOT / "Makefile").read_text()
    for name in DOCUMENTS:
        for target in re.findall(r"make ([a-z]+)", " ".join(blocks(name, "console"))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as they are made of them on the web."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    """A relative link to a file or folder that is there, and to a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", TEXTS[name])):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_is_there(name: str) -> None:
    """A module or test that a document names exists; a word in capitals stands for a name of one's own."""
    for path in re.findall(r"`((?:pipeline|stages|trainer|tests)/[\w./*-]+)`", BLOCK.sub("", TEXTS[name])):
        if not re.search(r"[A-Z]{4,}|\.\.\.", path):
            assert list(ROOT.glob(path.rstrip("/"))), f"{name}: {path}"


def test_the_licence_is_apache_2() -> None:
    """Unmodified, as another package has it."""
    (peer,) = (path for path in files("datasets") or [] if path.name == "LICENSE")
    assert (ROOT / "LICENSE").read_bytes() == Path(str(peer.locate())).read_bytes()


def test_the_licences_of_packaged_data_are_those_of_the_packages() -> None:
    """As their metadata say."""
    rows = re.findall(r"^\| `([\w-]+)` [\d.]+ \| .*? \| ([\w.-]+) \|", TEXTS["data/README.md"], re.MULTILINE)
    assert len(rows) >= 6
    for package, licence in rows:
        about = metadata(package)
        assert licence in {about["License"], about["License-Expression"]}, package


def test_the_changelog_has_the_version() -> None:
    """The version of the package has its section."""
    assert f"\n## [{VERSION}]" in TEXTS["CHANGELOG.md"]


def test_python_blocks_are_python() -> None:
    """Also where nothing runs them."""
    for name in DOCUMENTS:
        for text in blocks(name, "python"):
            ast.parse(text)


def test_every_plan_is_one() -> None:
    """Each is read, checked, and uses what stages write; rules by themselves go with the stages of the default plan."""
    default = tomllib.loads(planning.DEFAULT.read_text(encoding="utf-8"))
    for name in DOCUMENTS:
        for text in blocks(name, "toml"):
            if "my_module" not in text:
                planning.read({"stage": default["stage"], **tomllib.loads(text)}, name).check()
