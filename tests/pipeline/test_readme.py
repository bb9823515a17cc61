"""The README is true: its plan loads, its stage measures, its commands exist, its `make` targets are the Makefile's."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.main import get_command

from pipeline import plan as planning
from pipeline.cli import app
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every `refine ...` that a reader would type: in console blocks and in tables."""
    typed = [line[2:].split("#")[0] for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "]
    return [c.strip() for c in [*typed, *re.findall(r"`(refine \w+ [^`]*)`", README)] if c.startswith("refine ")]


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_typed(command: str) -> None:
    """Its options and arguments are those of the command line."""
    words = shlex.split(command.replace("RUN", "my-run").replace(" ID", " x"))[1:]
    sub = get_command(app).commands[words[0]]  # type: ignore[attr-defined]  # a group has commands
    sub.make_context(words[0], list(words[1:]), resilient_parsing=False).close()


def test_the_plan_is_one() -> None:
    """Each is read, checked, and uses what stages write."""
    plans = [planning.read(tomllib.loads(text), "README").check() for text in blocks("toml")]
    reasons = [[rule.reason for rule in plan.rules] for plan in plans]
    assert reasons == [["noisy", "near_duplicate"], ["released before", "contaminated", "passages given before"]]


def test_the_stage_measures() -> None:
    """A reader's first stage of his own works as it stands."""
    text = next(block for block in blocks("python") if "class Questions" in block)
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(text.replace("@dataclass(frozen=True)\n", ""), "README", "exec"), space)  # noqa: S102  our own text
    messages = [{"role": "user", "content": "Why? How?"}, {"role": "assistant", "content": "So."}]
    assert space["Questions"]().measure(pl.DataFrame({"messages": [messages]}))["questions"].to_list() == [1.0]


def test_the_make_targets_are_there() -> None:
    """Two commands set a fresh machine up."""
    makefile = Path(ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", " ".join(blocks("console"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
