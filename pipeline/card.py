"""The dataset card of a run: counts, plan and origin, as Markdown that the hub and `datasets` read."""

import json

from pipeline.manifest import HubSplit, Input, Manifest
from pipeline.plan import TRIMS

_HEAD = """---
configs:
- config_name: default
  data_files: refined/*.parquet
- config_name: rejected
  data_files: rejected/*.parquet
tags:
- chat
- refine
---
"""


def text(manifest: Manifest) -> str:
    """The card as Markdown. Names that come from the corpus are shown as code, never as markup."""
    counts = manifest.counts
    share = counts.refined / counts.ingested if counts.ingested else 0.0
    parts = [
        _HEAD,
        f"# {_plain(manifest.source)}, refined\n",
        (
            f"{counts.refined:,} of {counts.ingested:,} conversations ({share:.1%}) were kept, with "
            f"{counts.refined_tokens:,} tokens (words and punctuation marks). {counts.rejected:,} were dropped "
            f"and are in `rejected/` with the reason; {counts.quarantined:,} could not be read and are in "
            "`quarantine/`.\n"
        ),
        *([f"{counts.redacted:,} items of personal data were replaced by placeholders.\n"] if counts.redacted else []),
        *([f"The source is {manifest.sample}, taken by a hash of their text.\n"] if manifest.sample else []),
        *_repairs(manifest),
        "## What was dropped\n",
        _table(
            ("reason", "rule", "dropped", "fired", "unknown", "because"),
            [(_code(r.reason), _code(r.where), r.dropped, r.fired, r.nulls, _plain(r.because)) for r in manifest.rules],
        ),
        (
            "A conversation is counted as dropped by the first rule that fired. Unknown: the rule met a signal that "
            "could not be measured, and kept the conversation.\n"
        ),
        "## How it was measured\n",
        _table(
            ("stage", "digest", "parameters"),
            [(_code(s.use), _code(s.digest), _code(json.dumps(s.parameters, default=str))) for s in manifest.stages],
        ),
        *(f"{_plain(note)}\n" for stage in manifest.stages for note in stage.notes),
        "## Where it comes from\n",
        (
            f"Records of shape {_code(manifest.shape)}, source digest {_code(manifest.digest)}, "
            f"refine {manifest.refine}. Invalid text was replaced in {counts.replaced:,} conversations.\n"
        ),
        _table(("input", "content"), [_input(one) for one in manifest.inputs]),
    ]
    return "\n".join(parts)


def _repairs(manifest: Manifest) -> list[str]:
    """What was repaired; nothing if the plan has no repairs."""
    if not manifest.repairs:
        return []
    rows: list[tuple[object, ...]] = [
        (_code(one.trim), TRIMS[one.trim], one.conversations, _plain(one.because)) for one in manifest.repairs
    ]
    return [
        "## What was repaired\n",
        (
            f"{manifest.counts.repaired:,} conversations were repaired, before anything was measured. Their column "
            "`repairs` has what was removed, and where.\n"
        ),
        _table(("trim", "removes", "conversations", "because"), rows),
    ]


def _input(one: Input) -> tuple[str, str]:
    if isinstance(one, HubSplit):
        named = (("revision", one.revision), ("configuration", one.config), ("split", one.split))
        return _code(one.hub), _code(", ".join(f"{word} {name}" for word, name in named if name is not None))
    return _code(one.name), _code(f"{one.bytes} bytes, blake2b {one.blake2b}")


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    if not rows:
        return "Nothing.\n"
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _plain(value: object) -> str:
    """Text with the characters of Markdown and HTML escaped."""
    text = _printable(value)
    for mark in "\\`*_[]<>|&":
        text = text.replace(mark, f"\\{mark}")
    return text


def _code(value: object) -> str:
    """Inline code that may stand in a table cell."""
    return "`" + _printable(value).replace("`", "'").replace("|", "\\|") + "`"


def _printable(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(value))
