"""Contexts are those of the recurrence, whichever way they are computed, and begin anew where they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.cvfp.model import Network
from trainer.cvfp.scan import Contexts, Scanner, Tape, inputs
from trainer.cvfp.settings import Shape
from trainer.presets import HOUSE

SHAPES = (
    Shape(60, 24, 24, 3, weight_std=0.2),
    Shape(60, 24, 32, 2, 2, weight_std=0.1),
    Shape(60, 24, 24, 3, 1, "reduced", weight_std=0.05),
    Shape(60, 10, 18, 3, 3, "reduced", weight_std=0.05),
)


def network(shape: Shape) -> Network:
    made = Network(shape, seed=0)
    made.set_embedding(torch.randn(shape.vocabulary, shape.embedding, generator=torch.Generator().manual_seed(0)))
    return made


def tape(rows: int, starts: list[int], seed: int = 0) -> Tape:
    ids = torch.randint(0, 60, (rows,), generator=torch.Generator().manual_seed(seed))
    return Tape(ids, torch.tensor(starts))


@torch.no_grad()
def slowly(made: Network, text: Tape) -> list[torch.Tensor]:
    """The equations, one token at a time, with nothing shared with the code under test but the layers."""
    shape, out, c = made.shape, [], torch.zeros(made.shape.context)
    e = made.embed_norm(made.embedding.weight)[text.ids]
    begun = 0
    for t in range(len(text)):
        if t in text.starts.tolist():
            c, begun = torch.zeros(shape.context), t
        past = [e[t - k] if t - k >= begun else torch.zeros(shape.embedding) for k in range(shape.inputs - 1, -1, -1)]
        states = made.context(c[None], torch.cat(past)[None])
        c = states[-1][0]
        out.append(torch.cat([state[0] for state in states]))
    return out


def whole(scanner: Scanner, text: Tape) -> torch.Tensor:
    return torch.cat([torch.cat(states, dim=1) for _, _, states in scanner.along(text)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", ["sequential", "sweeps"])
def test_every_way_gives_the_recurrence(shape: Shape, how: str) -> None:
    """Sequential and by sweeps, with several conversations, all layers: the slow loop's contexts."""
    made, text = network(shape), tape(300, [0, 1, 70, 200])
    expected = torch.stack(slowly(made, text))
    found = whole(Scanner(made, how), text)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=2e-4)


def test_sweeps_are_used_where_they_settle_and_said() -> None:
    """A block that forgets is swept to the tolerance; a chaotic one is scanned, and the report says so."""
    forgets, chaotic = (
        network(Shape(60, 24, 24, 4, weight_std=0.3)),
        network(Shape(60, 48, 48, 4, 1, "reduced", weight_std=1)),
    )
    text = tape(2000, [0])
    swept, scanned = Scanner(forgets, "sweeps"), Scanner(chaotic, "sweeps")
    whole(swept, text)
    whole(scanned, text)
    assert swept.report.swept == 2000
    assert swept.report.sweeps < 96
    assert "parallel sweeps" in swept.report.describe()
    assert scanned.report.sequential == 2000
    assert scanned.report.describe() == "sequential scan"


def test_the_compiled_scan_equals_the_loop_over_layers() -> None:
    """Layer by layer and token by token the network itself gives the same contexts."""
    made, text = network(SHAPES[2]), tape(200, [0, 90])
    assert torch.allclose(torch.stack(slowly(made, text)), whole(Scanner(made, "sequential"), text), atol=1e-4)


def test_the_block_that_house_draws_is_swept() -> None:
    """It forgets slowly, so that more than a hundred sweeps may be needed; an accelerator must not scan it."""
    made = network(replace(HOUSE.shape, vocabulary=60))
    scanner, text = Scanner(made, "sweeps"), tape(1000, [0])
    swept = whole(scanner, text)
    assert scanner.report.swept == 1000
    assert torch.allclose(swept, whole(Scanner(made, "sequential"), text), atol=2e-4)


@given(
    rows=st.integers(2, 60),
    cuts=st.sets(st.integers(1, 59), max_size=5),
    inputs_=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_a_conversation_does_not_see_the_one_before(rows: int, cuts: set[int], inputs_: int, seed: int) -> None:
    """Contexts of a conversation in a stream are those it has alone, token history included."""
    made = network(Shape(60, 8, 12, 2, inputs_))
    starts = sorted({0, *(c for c in cuts if c < rows)})
    text = tape(rows, starts, seed)
    together = whole(Scanner(made), text)
    for a, b in zip(starts, [*starts[1:], rows], strict=True):
        alone = whole(Scanner(made), Tape(text.ids[a:b], torch.tensor([0])))
        assert torch.allclose(together[a:b], alone, atol=1e-5)


def test_missing_history_is_zero_and_not_normed() -> None:
    """The first token of a conversation sees literal zeros where its past would be."""
    made, text = network(Shape(60, 24, 32, 2, 3)), tape(10, [0, 4])
    with torch.no_grad():
        u = inputs(made, text, torch.tensor([0, 4, 5, 6]))
    assert not u[0, :48].any()
    assert not u[1, :48].any()
    assert not u[2, :24].any()
    assert u[2, 24:48].any()
    assert u[3].view(3, 24).any(dim=1).all()


def test_contexts_in_files_are_those_in_memory(tmp_path: Path) -> None:
    """Past the limit they lie on disk, the same."""
    made, text = network(SHAPES[0]), tape(500, [0, 100])
    memory, disk = Contexts.of(made, text, tmp_path), Contexts.of(made, text, tmp_path, limit=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.contexts", "1.contexts", "2.contexts"]
    assert all(torch.equal(a, b) for a, b in zip(memory.layers, disk.layers, strict=True))
    at = torch.tensor([3, 499, 0])
    assert all(torch.equal(a, b) for a, b in zip(memory.at(at), disk.at(at), strict=True))
