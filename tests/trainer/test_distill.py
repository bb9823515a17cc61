"""Distillation: mixing matrices, initial weights, losses, stages, and resume bit for bit."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn

from tests.trainer.test_transfer import MODELS, base, make
from trainer.causal import CausalModel
from trainer.cvfp import phase2
from trainer.cvfp.scan import Tape
from trainer.distill import contexts, initial, losses, mixing, training
from trainer.distill.initial import Tap
from trainer.distill.losses import Weights
from trainer.distill.student import DistillError, Student, build, check_stages, first, kept_layers
from trainer.distill.training import Settings, Texts
from trainer.transfer import function

V = 48
TEXTS = [torch.from_numpy(np.random.default_rng(i).integers(1, V, 5 + 3 * i % 17)) for i in range(30)]


def teacher(kind: str) -> CausalModel:
    network = make(kind).requires_grad_(requires_grad=False)
    return CausalModel(kind, network, Tokenizer(models.BPE()), V, 1, 1, 32)


def solved(of: CausalModel, kind: str = "auto", *, mean: bool = False) -> Student:
    """A student with its initial weights."""
    student, batch = build(of, kind, 0), training.batch_of(TEXTS, torch.device("cpu"))
    initial.copy_weights(of, student)
    initial.fit_outputs(of, student, batch.inputs, batch.own, mean=mean)
    return student


def test_a_mixing_matrix_has_golden_values() -> None:
    """A = -1, and dt, B and C of three positions, by a double loop in numpy; the recurrence gives the same."""
    dt, b, c = ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [1.0, -1.0, 0.5])
    given = (torch.tensor(one, dtype=torch.float64) for one in (dt, [[one] for one in b], [[one] for one in c]))
    m = mixing.mixing_matrix(torch.tensor(-1.0).double(), *given)
    golden = [[0.1, 0, 0], [-0.0818730753, -0.4, 0], [0.030326533, 0.1481636441, 0.45]]
    assert m.numpy() == pytest.approx(np.array(golden), abs=1e-9)
    x, state, y = [1.0, 2.0, -1.0], 0.0, []
    for i in range(3):
        state = np.exp(-dt[i]) * state + dt[i] * b[i] * x[i]
        y.append(c[i] * state)
    assert y == pytest.approx([0.1, -0.8818730753, -0.1233461787])
    assert (m @ torch.tensor(x).double()).numpy() == pytest.approx(np.array(y))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_mixer_is_its_matrix(kind: str) -> None:
    """M x is what the mixers of Bamba and of Mamba-2 give for 40 positions, without skip, gate, norm and output."""
    site = build(teacher(kind), "mamba2", 0).sites[0]
    mixer: Any = getattr(site.blocks[0], "mixer", site.blocks[0])
    with torch.no_grad():
        mixer.D.zero_()
        mixer.in_proj.weight.normal_(0, 0.5)
        x = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0))
        mixer.norm.forward = lambda scanned, _: scanned
        with Tap([mixer.out_proj]) as tap:
            mixer(x)
        matrices, values = mixing.of_mixer(mixer, x)
        ours = (matrices @ values).transpose(1, 2).flatten(2)
    assert float((ours - tap.inputs[0]).norm() / ours.norm()) < 1e-5


def test_ridge_solves_the_normal_equations() -> None:
    """The gradient of the penalised squared error is zero, with an intercept that is not penalised."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=generator) + 2, torch.randn(50, 3, generator=generator) - 5
    weight, bias = (one.double() for one in initial.ridge(x, y))
    x, y = x.double(), y.double()
    off = x @ weight + bias - y
    penalty = initial.RIDGE * (x - x.mean(0)).square().sum() / 6
    assert float((x.T @ off + penalty * weight).abs().max()) < 1e-4
    assert float(off.sum(0).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("kind", "student"),
    [
        *(("llama", "mamba2"), ("llama_tied", "auto"), ("qwen2", "mamba2"), ("qwen3", "mamba2")),
        *(("llama", "hybrid:1"), ("llama", "mamba"), ("gpt2", "auto"), ("gpt2", "mamba"), ("phi", "mamba2")),
        ("gpt_neox", "mamba2"),
    ],
)
def test_each_student_is_solved_saved_and_loaded(kind: str, student: str, tmp_path: Path) -> None:
    """Least squares come closer to the teacher's modules than their mean; transformers opens the student as it was."""
    of, batch = teacher(kind), training.batch_of(TEXTS, torch.device("cpu"))
    floor, made = solved(of, student, mean=True), solved(of, student)
    with torch.no_grad():
        assert float(losses.hidden(of, made, batch)) < float(losses.hidden(of, floor, batch))
        ids = TEXTS[-1][None]
        logits = made.network(input_ids=ids, use_cache=False).logits
        made.network.save_pretrained(tmp_path)
        assert torch.equal(base(tmp_path)(input_ids=ids, use_cache=False).logits, logits)
    assert len(made.sites) + max(len(kept_layers(student, 2)), 0) == 2
    tied = bool(of.network.config.tie_word_embeddings)
    assert (made.network.get_output_embeddings().weight is made.network.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_kept_layer_is_the_teachers(kind: str) -> None:
    """Rotary angles of all components, biases and grouped heads included: the same states after it, to float noise."""
    of = teacher(kind)
    student, ids = solved(of, "hybrid:1"), TEXTS[-1][None]
    assert kept_layers("hybrid:1", 2) == [0]
    with torch.no_grad(), Tap([of.network.model.layers[0]]) as theirs, Tap([student.network.model.layers[0]]) as ours:
        of.network(input_ids=ids)
        student.network(input_ids=ids)
    assert torch.allclose(first(ours.outputs[0]), first(theirs.outputs[0]), atol=1e-5)


def test_the_share_of_early_stages_falls_with_the_tokens() -> None:
    """A third up to 3 million tokens, 5 % from 100 million, divided by stages 1 and 2."""
    assert training.shares((2, 3), 3_000_000) == pytest.approx({2: 1 / 3})
    assert training.shares((1, 2, 3), 1000) == pytest.approx({1: 1 / 6, 2: 1 / 6})
    assert training.shares((2, 3), 100_000_000) == pytest.approx({2: 0.05})
    assert training.shares((2, 3), 10**9) == pytest.approx({2: 0.05})
    assert training.shares((3,), 1000) == {}


def test_an_epoch_has_every_text_once() -> None:
    """In each epoch, in another order; the last one ends as soon as the tokens are reached."""
    lengths = [len(text) for text in TEXTS]
    targets = sum(lengths) - len(lengths)
    once, twice = (training.plan(lengths, Settings(n * targets, 40, 1e-3)) for n in (1, 2))
    assert sorted(np.concatenate(once)) == list(range(30))
    assert [list(rows) for rows in twice[: len(once)]] == [list(rows) for rows in once]
    assert sorted(np.concatenate(twice[len(once) :])) == list(range(30))
    assert max(len(rows) * max(lengths[i] for i in rows) for rows in once) < 80
    assert len(training.plan(lengths, Settings(41, 40, 1e-3))) == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_lowers_its_loss(stage: int) -> None:
    """On one batch, in 20 steps; the teacher gets no gradients, and in stages 1 and 2 mixers alone learn."""
    of = teacher("qwen2")
    student = solved(of)
    check_stages(student, of, (1, 2, 3))
    lesson = training.student_lesson(of, student, Settings(1, 1, 1e-3, (1, 2, 3)))
    batch = training.batch_of(TEXTS[:8], torch.device("cpu"))
    learning = [p for name, p in student.network.named_parameters() if lesson.learning[stage](name)]
    names = [name for name, _ in student.network.named_parameters() if lesson.learning[stage](name)]
    assert all(".mamba." in name for name in names) == (stage < 3)
    optimiser, values = torch.optim.AdamW(learning, 1e-2), []
    for _ in range(20):
        loss = lesson.losses[stage](batch)
        values.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert values[-1] < 0.97 * values[0]
    assert all(p.grad is None for p in of.network.parameters())


def test_the_loss_of_attention_itself_is_zero() -> None:
    """Hidden states of a student whose blocks are the teacher's own modules."""
    of = teacher("gpt2")
    student = solved(of)
    own = replace(student, sites=tuple(replace(site, blocks=(site.teacher,)) for site in student.sites))
    assert float(losses.hidden(of, own, training.batch_of(TEXTS[:4], torch.device("cpu")))) == 0.0


def test_the_weights_of_the_last_stage() -> None:
    """Cross entropy alone, its mean with KL, and the relative error of states beside both: means over tokens."""
    of = teacher("llama")
    student, batch = solved(of), training.batch_of(TEXTS[:4], torch.device("cpu"))
    with torch.no_grad():
        texts = losses.everything(of, student, batch, Weights(0.0, 1.0, 0.0))
        assert float(texts) == pytest.approx(float(losses.cross_entropy(student.network, batch, V)))
        teachers = losses.everything(of, student, batch, Weights(1.0, 2.0, 0.0))
        half = losses.everything(of, student, batch, Weights(0.5, 2.0, 0.0))
        assert float(half) == pytest.approx(float(texts + teachers) / 2)
        # as the same texts one by one give it, without padding
        each = [
            losses.everything(of, student, training.batch_of([one], batch.inputs.device), Weights(1.0, 2.0, 0.0))
            for one in TEXTS[:4]
        ]
        sizes = torch.tensor([len(one) - 1.0 for one in TEXTS[:4]])
        assert float(teachers) == pytest.approx(float((torch.stack(each) * sizes).sum() / sizes.sum()), rel=1e-5)
        states = losses.everything(of, student, batch, Weights(0.0, 1.0, 2.0)) - texts
    assert 0 < float(states) < 4
    own = batch.own
    ones = torch.ones(*own.shape, 3)
    assert float(losses.relative_error(0 * ones, ones, own)) == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_of_logits_is_the_sum_of_its_parts(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL and cross entropy by torch, values and gradients, over the rows that have a target, in tiles of any height."""
    generator = torch.Generator().manual_seed(0)
    aim, z = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([3, losses.IGNORED, 0, 10, 5, losses.IGNORED, 5])
    own, slopes = targets != losses.IGNORED, []
    for tile in (1, 33, 1000):
        monkeypatch.setattr(losses, "TILE", tile)
        for weights in (Weights(0.3, temperature), Weights(0.0, temperature), Weights(1.0, temperature)):
            ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
            value = losses.soft_cross_entropy(aim, ours, targets, weights)
            alone = function.kl(aim[own], theirs[own], temperature)
            texts = nn.functional.cross_entropy(theirs[own], targets[own])
            expected = weights.alpha * alone + (1 - weights.alpha) * texts
            assert float(value.detach()) == pytest.approx(float(expected.detach()))
            (slope,), (reference,) = torch.autograd.grad(2 * value, ours), torch.autograd.grad(2 * expected, theirs)
            assert torch.allclose(slope, reference)
            slopes.append(slope)
    assert torch.equal(slopes[0], slopes[3])


class StoppedError(Exception):
    """As a signal would stop a run."""


@pytest.mark.parametrize("stages", [(3,), (1, 2, 3)])
def test_a_run_resumes_bit_for_bit(stages: tuple[int, ...], tmp_path: Path) -> None:
    """Stopped after every evaluation in turn: the same weights, byte for byte, and the same lines."""
    settings, texts = Settings(700, 60, 5e-3, stages), Texts(TEXTS[:24], TEXTS[24:])

    def run(place: Path, stops: int) -> tuple[Student, training.State]:
        of = teacher("llama")
        student = solved(of)
        check_stages(student, of, stages)
        seen = 0

        def tell(line: dict[str, Any]) -> None:
            nonlocal seen
            seen += "resumed" not in line
            if seen > stops:
                raise StoppedError

        return student, training.train(training.student_lesson(of, student, settings), texts, settings, place, tell)

    whole, state = run(tmp_path / "a", 10**6)
    assert [line["stage"] for line in state.lines] == sorted(line["stage"] for line in state.lines)
    for _ in range(100):
        try:
            again, resumed = run(tmp_path / "b", 5)
            break
        except StoppedError:
            pass
    assert resumed.lines == state.lines
    for (name, ours), theirs in zip(whole.network.named_parameters(), again.network.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    done, _ = run(tmp_path / "b", 0)
    assert all(torch.equal(p, q) for p, q in zip(done.network.parameters(), whole.network.parameters(), strict=True))


def cvfp(of: CausalModel, place: Path, settings: Settings, texts: Texts) -> Student:
    """A CVFP with its contexts."""
    student = build(of, "cvfp", settings.seed)
    contexts.begin(student.network, texts, settings, place, lambda _: None)
    return student


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba"])
def test_a_cvfp_is_a_model_of_transformers(kind: str, tmp_path: Path) -> None:
    """Of any teacher; saved and loaded as it was, with the losses that the trainer gives, whatever the padding."""
    of, texts = teacher(kind), Texts(TEXTS[:24], TEXTS[24:])
    student = cvfp(of, tmp_path / "checkpoints", Settings(300, 60, 1e-2), texts)
    nn.init.normal_(student.network.network.head.weight)
    student.network.save_pretrained(tmp_path)
    import_module("trainer.cvfp.causal")
    loaded = base(tmp_path)
    batch = training.batch_of(TEXTS[:4], torch.device("cpu"))
    with torch.no_grad():
        z = losses.logits(loaded, batch, V)[batch.own.flatten()]
        assert torch.equal(z, losses.logits(student.network, batch, V)[batch.own.flatten()])
        nats = nn.functional.cross_entropy(z, batch.targets[batch.own], reduction="none")
    each = [phase2.evaluate(loaded.network, Tape(ids, torch.zeros(1, dtype=torch.int64))).nats for ids in TEXTS[:4]]
    assert torch.allclose(nats, torch.cat(each), atol=1e-5)
    assert loaded.config.shape["vocabulary"] == V


def test_a_cvfp_resumes_bit_for_bit_and_keeps_its_contexts(tmp_path: Path) -> None:
    """Stopped in both phases; only token block and head learn from the teacher."""
    rows, of = [(torch.arange(12) + i) % V for i in range(24)], teacher("gpt2")
    settings, texts = Settings(700, 60, 5e-3, weights=Weights(0.5, 1.0, 0.0)), Texts(rows, rows)

    def run(place: Path, stops: int) -> Student:
        student, seen = build(of, "cvfp", 0), 0

        def tell(line: dict[str, Any]) -> None:
            nonlocal seen
            seen += "resumed" not in line
            if seen > stops:
                raise StoppedError

        contexts.begin(student.network, texts, settings, place, tell)
        training.train(training.student_lesson(of, student, settings), texts, settings, place, tell)
        return student

    whole = run(tmp_path / "a", 10**6)
    with pytest.raises(StoppedError):
        run(tmp_path / "b", 1)
    with pytest.raises(StoppedError):
        run(tmp_path / "b", 15)
    parts, start = run(tmp_path / "b", 10**6), cvfp(of, tmp_path / "a", settings, texts)
    for (name, ours), again, before in zip(
        whole.network.named_parameters(), parts.network.parameters(), start.network.parameters(), strict=True
    ):
        assert torch.equal(ours, again), name
        assert torch.equal(ours, before) == name.startswith(start.frozen), name


def test_a_stage_ends_when_it_stalls(tmp_path: Path) -> None:
    """With a learning rate that changes nothing, stages 1 and 2 end after two evaluations, and 3 has the rest."""
    of = teacher("llama")
    student, settings = solved(of), Settings(2400, 60, 1e-12, (1, 2, 3))
    check_stages(student, of, (1, 2, 3))
    lesson = training.student_lesson(of, student, settings)
    lines = training.train(lesson, Texts(TEXTS[:24], TEXTS[24:]), settings, tmp_path, lambda _: None).lines
    ends = {line["stage"]: line["step"] for line in lines}
    steps = len(training.plan([len(text) for text in TEXTS[:24]], settings))
    interval = steps // training.EVALUATIONS
    assert ends == {1: 3 * interval, 2: 6 * interval, 3: steps}


def _strange(kind: str) -> CausalModel:
    if kind == "wide":
        values = {**MODELS["llama"][1], "head_dim": 10}
        library = __import__("transformers")
        network = library.LlamaForCausalLM(library.LlamaConfig(**values))
        return replace(teacher("llama"), name=kind, network=network)
    return teacher(kind)


@pytest.mark.parametrize(
    ("kind", "student", "words"),
    [
        ("gemma2", "auto", "has layers that are not supported (sliding window)"),
        ("mistral", "auto", "has layers that are not supported (sliding window)"),
        ("mamba", "auto", "has layers that are not supported (linear attention)"),
        ("wide", "auto", "2 heads of 10 components and a width of 24"),
        ("llama", "rwkv", "--student is 'rwkv', expected auto, mamba2, mamba, cvfp, hybrid:K"),
        ("llama", "hybrid:2", "--student is hybrid:2, and the teacher has 2 layers: keep 1 to 1, or take mamba2"),
        ("gpt2", "hybrid:1", "a gpt2 model has other layers than llama"),
        ("qwen3", "hybrid:1", "norms of queries and keys"),
    ],
)
def test_a_teacher_that_does_not_suit_is_one_sentence(kind: str, student: str, words: str) -> None:
    """The kinds of layers, or the numbers, are named."""
    with pytest.raises(DistillError) as caught:
        build(_strange(kind), student, 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_cannot_be_are_refused() -> None:
    """Stage 1 without attention to match, and stages that are none."""
    of = teacher("gpt2")
    with pytest.raises(DistillError, match="take 2,3"):
        check_stages(build(of, "auto", 0), of, (1, 2, 3))
    with pytest.raises(DistillError, match=r"--stages is 2,3, and a cvfp student has no layers .* take 3"):
        check_stages(build(of, "cvfp", 0), of, (2, 3))
    with pytest.raises(DistillError, match="--stages is '3,2', expected auto, 3, 2,3, 1,2,3"):
        training.check_stages("3,2")


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    """It names the stage, the step and the learning rate."""
    of = teacher("llama")
    student = solved(of)
    nn.init.constant_(student.network.model.final_layernorm.weight, float("nan"))
    settings = Settings(100, 60, 1e-3)
    with pytest.raises(DistillError, match=r"stage 3 is not a finite number at step 1: take a lower --lr than 0.001"):
        training.train(
            training.student_lesson(of, student, settings), Texts(TEXTS, TEXTS), settings, tmp_path, lambda _: None
        )


@pytest.mark.parametrize("limit", [4, 1])
def test_a_batch_that_does_not_fit_is_halved_once(limit: int, tmp_path: Path) -> None:
    """As the allocator of a processor refuses it: with the gradients of the whole batch, or one sentence."""

    def run(place: str, most: int) -> list[float]:
        network = teacher("llama").network
        lesson = training.text_lesson("teacher", network, V)

        def loss(batch: losses.Batch) -> torch.Tensor:
            if len(batch.inputs) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
            return losses.cross_entropy(network, batch, V)

        narrow, texts = replace(lesson, losses={3: loss}), Texts([TEXTS[4]] * 16, TEXTS[24:])
        lines = training.train(narrow, texts, Settings(128, 128, 1e-3), tmp_path / place, lambda _: None).lines
        return [line["validation"] for line in lines]

    assert len(TEXTS[4]) - 1 == 16
    if limit == 1:
        with pytest.raises(
            DistillError, match="for 4096 bytes more, although each batch was halved: take a --batch below 64"
        ):
            run("a", limit)
    else:
        assert run("a", limit) == pytest.approx(run("b", 100), rel=1e-5)
