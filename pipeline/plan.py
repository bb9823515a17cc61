"""Plans: what to measure and what to drop, read from TOML and checked before any work."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import polars as pl
import tomli_w

import stages
from pipeline import rules
from pipeline.rules import Drop, KeepBest, KeepTop, Rule
from stages.stage import RAW, GlobalStage, Stage, StageParameterError, parameters

if TYPE_CHECKING:
    from stages.pii.redact import Redaction

PLANS = Path(__file__).with_name("plans")
"""The folder of the plans that come with refine, each with its name."""
DEFAULT = PLANS / "default.toml"
"""The default plan, which `refine plan` prints."""


class PlanError(ValueError):
    """A plan cannot be used; the message names the file or option, and the key."""


TRIMS = {
    "empty": "turns without text, calls or media",
    "truncated": "a last reply that stops short, and what it answers",
    "unanswered": "what follows the last reply, a user's turn among it",
}
"""Repairs, and what each of them removes."""
REPAIR_VERSION = 1
"""Increase it when the same repairs give other conversations than before; signals are then measured again."""


@dataclass(frozen=True)
class Repair:
    """A repair that is made before anything is measured; see `pipeline.repair`."""

    trim: str
    because: str = ""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan, the name that the plan uses for it, and the repairs that are made before it measures."""

    name: str
    stage: Stage
    trims: tuple[str, ...] = ()

    @cached_property  # a digest may read models of many megabytes
    def key(self) -> str:
        """Name of its folder in a run."""
        digest = self.stage.digest()
        if self.trims:
            measured = repr((digest, self.trims, REPAIR_VERSION))
            digest = hashlib.blake2b(measured.encode(), digest_size=8).hexdigest()
        return f"{self.name.replace(':', '.')}-{digest}"

    @property
    def signals(self) -> pl.Schema:
        """Schema of all its columns, including those of its merge."""
        merged = self.stage.merges if isinstance(self.stage, GlobalStage) else {}
        return pl.Schema({**self.stage.writes, **merged})


@dataclass(frozen=True)
class Plan:
    """Stages that measure, rules that decide, and columns that are written beside the refined conversations."""

    stages: tuple[PlannedStage, ...]
    rules: tuple[Rule, ...]
    order: tuple[str, ...] = ()
    """How duplicates are ranked: columns with ASC or DESC, as in SQL."""
    columns: tuple[str, ...] = ()
    """Names of the signals that are written beside each refined conversation."""
    map: tuple[tuple[str, str], ...] = ()
    """Which columns of a record hold what: meaning, column."""
    redact: tuple[str, ...] = ()
    """Kinds of personal data that are replaced by placeholders in everything that is written."""
    repairs: tuple[Repair, ...] = ()
    """What is removed from conversations before they are measured."""
    left_out: tuple[str, ...] = ()
    """Reasons of the rules that were omitted because a stage that they need was not picked."""

    @property
    def trims(self) -> tuple[str, ...]:
        """The repairs in the order in which they are made, which is not that of the plan."""
        return tuple(sorted(one.trim for one in self.repairs))

    @property
    def signals(self) -> pl.Schema:
        """Schema of the signals of all stages."""
        return pl.Schema({name: kind for measured in self.stages for name, kind in measured.signals.items()})

    @property
    def pairs(self) -> dict[str, PlannedStage]:
        """The stage that finds each kind of pairs."""
        return {
            kind: measured
            for measured in self.stages
            if isinstance(measured.stage, GlobalStage)
            for kind in (*measured.stage.pairs, *measured.stage.copies)
        }

    @property
    def redaction(self) -> Redaction | None:
        """What is redacted, or None; raises `PlanError` if that cannot be done."""
        if not self.redact:
            return None
        from stages.pii import Pii  # libphonenumber takes 0.1 s to import
        from stages.pii.find import KINDS
        from stages.pii.redact import Redaction

        regions = [each.stage.regions for each in self.stages if isinstance(each.stage, Pii)]
        if not regions:
            raise PlanError('[write] redact needs the stage `pii`: add [[stage]] use = "pii" to the plan')
        if unknown := [kind for kind in self.redact if kind not in KINDS]:
            raise PlanError(f"[write] redact names {unknown[0]!r}; there are {', '.join(KINDS)}")
        return Redaction(self.redact, regions[0])

    def check(self) -> Plan:
        """Return the plan itself if it can be carried out; raises `PlanError` or `RuleError` otherwise."""
        owner: dict[str, str] = {}
        for measured in self.stages:
            for column in measured.signals:
                if column in RAW or column in RESERVED:
                    raise PlanError(
                        f"stage {measured.name!r} writes the column {column!r}, which every shard has: rename it"
                    )
                if column in owner:
                    raise PlanError(f"stages {owner[column]!r} and {measured.name!r} both write the column {column!r}")
                owner[column] = measured.name
        for column in self.columns:
            if column not in owner:
                raise PlanError(f"columns: no stage writes {column!r}; there are {', '.join(owner) or 'none'}")
        if rule := next((rule for rule in self.rules if rule.reason in RESERVED), None):
            raise PlanError(f"a rule cannot have the reason {rule.reason!r}: decisions have a column of that name")
        _ = self.redaction
        rules.check(self.rules, self.order, self.signals, list(self.pairs))
        for rule in self.rules:
            floor = getattr(self.pairs[rule.pairs].stage, "floor", 0.0) if isinstance(rule, KeepBest) else 0.0
            if isinstance(rule, KeepBest) and rule.at_least < floor:
                raise PlanError(
                    f"rule {rule.reason!r}: at_least is {rule.at_least:g}, but its stage records only pairs at or "
                    f"above {floor:g}: raise at_least, or lower the floor of the stage"
                )
        return self

    def with_stages(self, names: Sequence[str]) -> Plan:
        """The plan with these stages only, and the rules that need no other; naming one twice is a `PlanError`."""
        if not names:
            raise PlanError(f"--stages names no stage; there are {', '.join(stages.names())}")
        by_name = {measured.name: measured for measured in self.stages}
        if doubled := next((name for name in names if list(names).count(name) > 1), None):
            raise PlanError(f"--stages names {doubled!r} twice")
        chosen = tuple(by_name.get(name) or PlannedStage(name, stages.find(name)(), self.trims) for name in names)
        small = replace(self, stages=chosen)
        signals, pairs = small.signals, small.pairs
        fits = [
            rule.pairs in pairs if isinstance(rule, KeepBest) else set(rule.columns()) <= set(signals)
            for rule in self.rules
        ]
        return replace(
            small,
            rules=tuple(rule for rule, fit in zip(self.rules, fits, strict=True) if fit),
            order=tuple(term for term in self.order if term.split()[0] in signals),
            columns=tuple(column for column in self.columns if column in signals),
            left_out=tuple(rule.reason for rule, fit in zip(self.rules, fits, strict=True) if not fit),
        )

    def with_drops(self, conditions: Sequence[str]) -> Plan:
        """Return the plan with these rules, SQL or "reason: SQL", in place of those that --drop added before."""
        named = [(condition, _NAMED.fullmatch(condition)) for condition in conditions]
        more = [Drop(found[1], found[2], ADDED) if found else Drop(sql, sql, ADDED) for sql, found in named]
        drops = [rule for rule in self.rules if isinstance(rule, Drop) and rule.because != ADDED]
        others = [rule for rule in self.rules if not isinstance(rule, Drop)]
        return replace(self, rules=(*drops, *more, *others))


def dumps(plan: Plan) -> str:
    """The plan as TOML, with every parameter, from which `load` reads the same plan."""
    repaired = {"repair": [_table(one) for one in plan.repairs]} if plan.repairs else {}
    ruled = {name: [_table(rule) for rule in plan.rules if isinstance(rule, kind)] for name, kind in _RULES.items()}
    measured = [
        {"use": each.name, **{key: value for key, value in parameters(each.stage).items() if value is not None}}
        for each in plan.stages
    ]
    first: dict[str, Any] = {"order": list(plan.order), "columns": list(plan.columns)}
    first |= {"map": dict(plan.map)} if plan.map else {}
    first |= {"write": {"redact": list(plan.redact)}} if plan.redact else {}
    if not ruled["keep_top"]:
        del ruled["keep_top"]
    return tomli_w.dumps({**first, "stage": measured, **repaired, **ruled})


def _table(rule: Rule | Repair) -> dict[str, Any]:
    """A rule's keys without those that have their default."""
    return {each.name: value for each in fields(rule) if (value := getattr(rule, each.name)) != each.default}


ADDED = "--drop"
"""The `because` of a rule that --drop added; the next `refine decide` starts without it."""
_NAMED = re.compile(r"\s*([\w -]*\w)\s*:(?!:)\s*(.*?)\s*", re.DOTALL)
"""A condition with its reason; `ppl::int > 800` is a cast."""

RESERVED = {"id", "keep", "reason", "duplicate_of", "jaccard", "cosine", "cut", "repairs"}
"""Columns of the decisions and of repaired rows, which no signal or rule may be named after."""

_RULES: dict[str, type[Drop | KeepBest | KeepTop]] = {"drop": Drop, "keep_best": KeepBest, "keep_top": KeepTop}
_TABLES = ("stage", "repair", *_RULES)


def named() -> dict[str, str]:
    """What each plan that comes with refine is for, by name, the default plan first."""
    paths = sorted(PLANS.glob("*.toml"), key=lambda path: (path != DEFAULT, path.stem))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in paths}


def find(plan: Path | str | None) -> Path:
    """The file of a plan: a path, or a name of `named`; None is the default plan.

    Text with a suffix or a slash is a path, any other is a name; raises `PlanError` if no plan has it.
    """
    if plan is None or isinstance(plan, Path):
        return plan or DEFAULT
    if Path(plan).suffix or "/" in plan or os.sep in plan:
        return Path(plan)
    if plan not in named():
        close = difflib.get_close_matches(plan, named(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PlanError(
            f"there is no plan {plan!r}: {hint}there are {', '.join(named())}; a file is named with its ending or as "
            f"./{plan}"
        )
    return PLANS / f"{plan}.toml"


def load(path: Path) -> Plan:
    """Read and check a plan; raises `PlanError`, `UnknownStageError` or `RuleError` if it cannot be used."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"plan {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"plan {path} is not TOML: {error}") from error
    return read(tables, str(path)).check()


def read(tables: Mapping[str, Any], where: str) -> Plan:
    """A plan from parsed TOML, not yet checked; `where` names it in errors."""
    _known(tables, {*_TABLES, "order", "columns", "map", "write"}, where)
    for table in _TABLES:
        if not isinstance(tables.get(table, []), list) or not all(isinstance(x, dict) for x in tables.get(table, [])):
            raise PlanError(f"{where}: {table} should be written as [[{table}]]")
    repairs = tuple(_repair(table, where) for table in tables.get("repair", []))
    if doubled := [one.trim for i, one in enumerate(repairs) if one.trim in {other.trim for other in repairs[:i]}]:
        raise PlanError(f"{where}: two [[repair]] trim {doubled[0]!r}: omit one")
    trims = tuple(sorted(one.trim for one in repairs))
    measured = tuple(replace(_stage(table, where), trims=trims) for table in tables.get("stage", []))
    ruled = tuple(_rule(kind, name, table, where) for name, kind in _RULES.items() for table in tables.get(name, []))
    named = tables.get("map", {})
    if not isinstance(named, dict) or not all(isinstance(column, str) for column in named.values()):
        raise PlanError(f'{where}: map is {named!r}, expected a table such as {{messages = "thread", role = "who"}}')
    order, columns = _texts(tables, "order", where), _texts(tables, "columns", where)
    written = tables.get("write", {})
    if not isinstance(written, dict):
        raise PlanError(f'{where}: write is {written!r}, expected a table such as redact = ["email"] under [write]')
    _known(written, {"redact"}, f"{where}: [write]")
    redact = _texts(written, "redact", f"{where}: [write]")
    return Plan(measured, ruled, order, columns, tuple(named.items()), redact, repairs)


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in table:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise PlanError(f"{where}: unknown key {key!r}: {hint}there are {', '.join(sorted(keys))}")


def _texts(tables: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = tables.get(key, [])
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise PlanError(f"{where}: {key} is {value!r}, expected a list of strings")
    return tuple(value)


def _stage(table: Mapping[str, Any], where: str) -> PlannedStage:
    use = table.get("use")
    if not isinstance(use, str):
        raise PlanError(f'{where}: a [[stage]] needs use = "name"; there are {", ".join(stages.names())}')
    kind = stages.find(use)
    here = f"{where}: stage {use!r}"
    given = _parameters(kind, table, here, "use")
    try:
        return PlannedStage(use, kind(**given))
    except (TypeError, StageParameterError) as error:
        raise PlanError(f"{here}: {error}") from error


def _parameters(kind: Any, table: Mapping[str, Any], where: str, *others: str) -> dict[str, Any]:  # noqa: ANN401  a class
    """The parameters of a stage or rule from its table, which may have other keys."""
    _known(table, {*others, *(field.name for field in fields(kind))}, where)
    types = get_type_hints(kind)
    return {key: _value(value, types[key], f"{where}: {key}") for key, value in table.items() if key not in others}


def _value(value: object, kind: Any, where: str) -> Any:  # noqa: ANN401  a field of any type
    """A TOML value as the type of a field: lists become tuples, and integers are accepted as floats."""
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    kinds = get_args(kind) or (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = tuple(k for k in kinds if isinstance(k, type))
    if plain and (not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain)):
        names = " or ".join(k.__name__ for k in plain if k is not type(None))
        raise PlanError(f"{where} is {value!r}, expected {names}")
    return value


def _repair(table: Mapping[str, Any], where: str) -> Repair:
    given = _parameters(Repair, table, f"{where}: [[repair]]")
    if given.get("trim") not in TRIMS:
        raise PlanError(f"{where}: [[repair]] trim is {given.get('trim')!r}, expected {', '.join(TRIMS)}")
    return Repair(**given)


def _rule(kind: type[Drop | KeepBest | KeepTop], name: str, table: Mapping[str, Any], where: str) -> Rule:
    here = f"{where}: [[{name}]] {table.get('reason', '')!r}"
    given = _parameters(kind, table, here)
    for field in fields(kind):
        if field.name not in given and field.default is MISSING:
            raise PlanError(f"{here} has no {field.name}")
    return kind(**given)
