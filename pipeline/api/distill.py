"""`refine.distill`: recurrent students of a transformer, from Python."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline import terminal
from pipeline.api.compare import text as name_of
from pipeline.api.compare import words
from pipeline.api.models import summary
from pipeline.api.run import Run
from pipeline.api.tables import Display, Summary
from pipeline.models import distill as distilling
from pipeline.models import distill_corpora as both
from pipeline.models.distill import Distilled, DistillOptions
from pipeline.models.distill_corpora import CorporaDistilled
from pipeline.store.bucket import check_local

SAME = (
    *("student", "tokens", "stages", "alpha", "temperature", "hidden", "context", "batch", "seed", "device", "compare"),
    "limit",
)
"""Options that the command takes as they are given."""


@dataclass(frozen=True, repr=False)
class Student(Display, Distilled):
    """A student of a transformer, in `folder`, beside its controls on one test set."""

    def summaries(self) -> Sequence[Summary]:
        """Return the table of scores, and what may be concluded."""
        return [summary(self.table, distilling.lines(self))]


@dataclass(frozen=True, repr=False)
class Students(Display, CorporaDistilled):
    """Students of a transformer on two corpora, and which corpus is better to distil on."""

    def summaries(self) -> Sequence[Summary]:
        """Return the perplexity of each student, and what may be concluded."""
        title, head, rows = both.cells(self)
        return [Summary(title, head, rows, frozenset(range(1, len(head))), "\n".join((self.sentence, *self.notes)))]

    @property
    def ratio(self) -> float:
        """The perplexity of students of the second corpus over that of the first."""
        return math.exp(self.ln_ratio)


def distill(
    teacher: Path | str,
    sources: Run | Path | str | Sequence[Run | Path | str],
    *,
    out: Path | str | None = None,
    run: Path | str | None = None,
    seeds: int | None = None,
    student: str = "auto",
    tokens: int = 1_000_000,
    stages: str = "auto",
    alpha: float = 0.5,
    temperature: float = 1.0,
    hidden: float | None = None,
    context: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    compare: bool = False,
    score: Path | str | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int | None = None,
    progress: bool = False,
) -> Student | Students:
    """Train a recurrent student of a transformer as `refine distill` does.

    Args:
        teacher: folder or hub id of a transformer.
        sources: a corpus: a run, a file, a folder or a hub id; or two, to find out which is better to distil on.
        out: folder of the student or students; by default one in data/experiments/.
        run: the run that raw and refined belong to; by default the one that finished last.
        seeds: students of each of two corpora; by default 3.
        student: mamba2, mamba, cvfp, or hybrid:K with K attention layers of the teacher; auto is mamba2.
        tokens: training tokens, over all stages.
        stages: 3; 2,3; or 1,2,3: matrices, hidden states, logits. auto is 3.
        alpha: weight of the teacher's logits; the texts have the rest.
        temperature: of both logits.
        hidden: weight of the states after each layer, by default 0.5; a cvfp student has none.
        context: tokens of a window; by default 512, or the teacher's positions.
        batch: tokens of a step.
        lr: maximum learning rate.
        compare: also train controls on the same tokens: from scratch, the teacher itself.
        score: folder of an experiment on whose test set is scored.
        seed: of the weights and the order of texts.
        device: torch device.
        limit: number of rows to read; by default all.
        progress: show notes on stderr.

    Raises:
        RefineError: the teacher, a corpus or an option does not serve; the message says why and what to do.
    """
    given = dict(locals())
    check_local(out)
    names = [name_of(one) for one in ([sources] if isinstance(sources, str | Path | Run) else sources)]
    command = shlex.join(("refine", "distill", str(teacher), *names, *words("", distill, given, ())[1:]))
    options = DistillOptions(
        teacher=str(teacher),
        source=names[0] if names else "",
        out=None if out is None else Path(out),
        rate=lr,
        score=None if score is None else Path(score),
        **{name: given[name] for name in SAME},
    )
    with terminal.progress(show=progress):
        made = both.distill_on(options, names, None if run is None else Path(run), seeds, command)
    values: dict[str, Any] = {one.name: getattr(made, one.name) for one in fields(made)}
    return Student(**values) if isinstance(made, Distilled) else Students(**values)
