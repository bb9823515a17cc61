"""The difference of two models as an adapter: low-rank factors of linear weights, and all else that changed, whole."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.causal import TOKENS
from trainer.transfer import lowrank
from trainer.transfer import roles as telling
from trainer.transfer.adapter import AdapterWriter, full_name, tensors_of
from trainer.transfer.lowrank import LowRank, Method
from trainer.transfer.roles import Role, Roles
from trainer.transfer.weights import FLOATS, Checkpoint, TensorFile, WeightsError, Writer, equal, read

UNRELATED = 1.0
"""Median |D|/|W| of linear weights above which models were not trained from one another; unrelated ones have 1.4."""
LOOKED_AT = 16
"""Linear weights by which that is judged before anything is factored."""
VALUES = 32
"""Singular values of a tensor in the record."""
SHARE = 0.95
"""Share of the energy whose rank the record names."""
ROWS = 4096
"""Rows of a tensor that is kept whole that are compared at a time."""
MAX_SPECTRUM = 1024
"""Width up to which the singular values of a tensor that is kept whole are computed."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
How = Literal["low rank", "whole", "bias", "left out", "unchanged", "tied"]


@dataclass(frozen=True)
class ExtractOptions:
    """How differences are factored.

    Attributes:
        rank: of linear weights; None for the smallest that keeps `energy`; 0 for the full rank, which is kept whole.
        energy: share of |D|_F^2 that factors keep.
        most: maximum rank if it is chosen.
        whole: modules that are kept as they are in the tuned model, by their full names or their ends; None for those
            of all that is no linear weight.
        embeddings: "whole", or "lora" to factor the input embedding as a linear weight is.
        only: regular expression of the tensors that are extracted.
        exclude: regular expression of tensors that are not.
        svd: "auto", or "lapack".
        dtype: of factors and values: "same" as in the base, or float32, bfloat16, float16.
        force: extract from models that were not trained from one another.
    """

    rank: int | None = None
    energy: float = 0.9
    most: int = 256
    whole: tuple[str, ...] | None = None
    embeddings: str = "whole"
    only: str | None = None
    exclude: str | None = None
    svd: Method = "auto"
    dtype: str = "same"
    force: bool = False


def options_of(  # noqa: PLR0917  the command's options
    rank: str,
    energy: float,
    most: int,
    whole: str,
    embeddings: str,
    only: str | None,
    exclude: str | None,
    svd: str,
    dtype: str,
    *,
    force: bool,
) -> ExtractOptions:
    """The options of the command line; a TrainerError if one does not serve."""
    if rank not in {"auto", "full"} and not (rank.isascii() and rank.isdecimal() and int(rank)):
        raise lowrank.RankError(f"--rank is {rank!r}, expected auto, full or a number of at least 1")
    if embeddings not in {"whole", "lora"}:
        raise WeightsError(f"--embeddings is {embeddings!r}, expected whole or lora")
    if svd not in {"auto", "lapack"}:
        raise WeightsError(f"--svd is {svd!r}, expected auto or lapack")
    if whole not in {"auto", "none"} and not all(whole.split(",")):
        raise WeightsError(f"--whole is {whole!r}, expected auto, none, or names of modules")
    number = {"auto": None, "full": 0}.get(rank, int(rank) if rank.isdecimal() else None)
    method: Method = "lapack" if svd == "lapack" else "auto"
    names = None if whole == "auto" else tuple(name for name in whole.split(",") if name and whole != "none")
    return ExtractOptions(number, energy, most, names, embeddings, only, exclude, method, dtype, force)


@dataclass(frozen=True)
class TensorRecord:
    """What changed in a tensor and how it is kept.

    Attributes:
        name: in the checkpoint.
        part: attention, MLP, norms, embeddings or other.
        layer: number of its layer; None outside layers.
        role: of its module within the layer.
        shape: of the tensor.
        how: it is kept.
        difference: |D|_F.
        relative: |D|_F / |W|_F; None if the base has only zeros there.
        rank: of the factors; None if there are none.
        kept: share of |D|_F^2 that is kept.
        stable_rank: |D|_F^2 / s_1^2; None for a vector, or if it was not computed.
        rank95: smallest rank that keeps 95 % of |D|_F^2; None as above, or if not all singular values are known.
        values: the first singular values.
        noise: share of |D|_F^2 that rounding to the tuned model's type explains.
        seconds: of the processor.
    """

    name: str
    part: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    how: How
    difference: float = 0.0
    relative: float | None = 0.0
    rank: int | None = None
    kept: float = 1.0
    stable_rank: float | None = None
    rank95: int | None = None
    values: tuple[float, ...] = ()
    noise: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Extraction:
    """What `extract` found: a record of each tensor, and the size of the adapter in bytes; 0 if nothing was written.

    `notes` are sentences for the reader, `added` the number of tokens that the tuned vocabulary adds.
    """

    base: str
    tuned: str
    digests: tuple[str, str]
    tensors: tuple[TensorRecord, ...]
    size: int
    added: int
    notes: tuple[str, ...]
    options: ExtractOptions

    @property
    def changed(self) -> list[TensorRecord]:
        """The tensors that differ."""
        return [one for one in self.tensors if one.how not in {"unchanged", "tied"}]

    def as_dict(self) -> dict[str, Any]:
        """The extraction as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """Two checkpoints of one architecture, their roles, and what is to be kept of which module."""

    base: Checkpoint
    tuned: Checkpoint
    roles: Roles
    changed: tuple[str, ...]
    whole: tuple[str, ...]
    """Modules that are kept whole."""
    added: int
    options: ExtractOptions

    def within(self, module: str) -> bool:
        """Whether a module is kept whole, by itself or as a part of another."""
        return any(module == one or module.startswith(f"{one}.") for one in self.whole)


def plan(base: str, tuned: str, options: ExtractOptions) -> Job:
    """Check two models before any arithmetic, and find out which tensors differ.

    Raises:
        WeightsError, ModelError: one cannot be read, or they do not have the same architecture and shapes.
    """
    if options.dtype not in {"same", *DTYPES}:
        raise WeightsError(f"--dtype is {options.dtype!r}, expected same, {', '.join(DTYPES)}")
    if not 0 < options.energy <= 1:
        raise lowrank.RankError(f"--energy is {options.energy}, expected above 0, up to 1")
    first, second = Checkpoint.open(base), Checkpoint.open(tuned)
    roles = telling.roles(first)
    first, second = (_without_tied(one, roles) for one in (first, second))
    added = _check_shapes(first, second, roles)
    if added:
        common = {name: _head(one, first.tensors[name].shape) for name, one in second.tensors.items()}
        second = replace(second, tensors=common)
    changed = [name for name in sorted(first.tensors) if not equal(first.tensors[name], second.tensors[name])]
    every, changed = changed, [name for name in changed if _chosen(name, options)]
    if every and not changed:
        raise WeightsError(f"--only and --not leave out all {len(every):,} tensors that differ, such as {every[0]}")
    if integers := [name for name in changed for one in (first, second) if one.tensors[name].kind not in FLOATS]:
        raise WeightsError(
            f"{integers[0]} differs, and holds whole numbers in one of the models: name models whose weights are floats"
        )
    if lost := [name for name in changed if roles.by_name[name].lost]:
        raise WeightsError(
            f"{lost[0]} is no tensor of a module of {base}'s architecture ({len(lost)} are not), as where experts are "
            "merged: an adapter cannot hold it; leave such tensors out with --not"
        )
    job = Job(first, second, roles, tuple(changed), (), added, options)
    if not options.force:
        _check_related(job)
    return replace(job, whole=_whole(job))


def _whole(job: Job) -> tuple[str, ...]:
    """The modules with a changed tensor that are kept whole: those that hold no other, by name."""
    names, roles = job.options.whole, job.roles
    modules = {role.module for role in roles.by_name.values()}
    for name in names or ():
        if not any(_ends(module, name) for module in modules):
            raise WeightsError(
                f"--whole is {name!r}, which no module of {job.base.name} ends with, expected auto, none, or names "
                f"such as {', '.join(sorted({module.rpartition('.')[2] for module in modules})[:3])}"
            )
    changed = [roles.by_name[name] for name in job.changed]
    if names is None:
        whole = {role.module for role in changed if not _factored(role, job)}
    else:
        whole = {role.module for role in changed if any(_ends(role.module, name) for name in names)}
    return tuple(sorted(one for one in whole if not any(one.startswith(f"{other}.") for other in whole - {one})))


def _ends(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def extract(job: Job, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Extraction:
    """Write the adapter of two models into an empty folder, a tensor at a time.

    Nothing is written if nothing differs. Memory: about three times the largest tensor in float32.

    Raises:
        WeightsError: a tensor holds NaN or infinity, or cannot be held by an adapter.
    """
    digests = job.base.digest(), job.tuned.digest()
    if not job.changed and not job.added:
        rest = tuple(_unchanged(job, name) for name in sorted(job.base.tensors))
        return Extraction(job.base.name, job.tuned.name, digests, rest, 0, 0, ("nothing differs",), job.options)
    place = Path(job.base.name).expanduser()
    writer = AdapterWriter(folder, str(place.resolve()) if place.is_dir() else job.base.name, job.roles)
    records, notes = {}, list[str]()
    weights_first = sorted(job.changed, key=lambda name: (job.roles.by_name[name].kind == "bias", name))
    for i, name in enumerate(weights_first, 1):
        tell(f"{name} ({i} of {len(job.changed)})")
        records[name] = _tensor(job, name, writer)
    for module in job.whole:
        _write_whole(job, module, writer)
    if job.roles.tied and job.roles.embedding in writer.whole and job.roles.head:
        writer.add_whole(job.roles.head, _values(job, job.roles.embedding))
    writer.close()
    notes += _notes(job, records)
    size = writer.tensors.size
    if job.added:
        size += _write_tokens(job, folder)
    for name in sorted(job.base.tensors.keys() - records.keys()):
        records[name] = _unchanged(job, name)
    ordered = tuple(records[name] for name in sorted(records, key=lambda name: _place(job, name)))
    return Extraction(job.base.name, job.tuned.name, digests, ordered, size, job.added, tuple(notes), job.options)


def _tensor(job: Job, name: str, writer: AdapterWriter) -> TensorRecord:
    """Factor a tensor that differs, or say how it is kept."""
    began, role, options = time.process_time(), job.roles.by_name[name], job.options
    a, b = job.base.tensors[name], job.tuned.tensors[name]
    record = TensorRecord(name, role.part, role.layer, role.name, a.shape, "left out")
    if role.kind == "bias" and role.linear and options.whole is None and not job.within(role.module):
        if role.module not in writer.whole:
            if role.module not in writer.ranks:
                _zero_factors(job, role, writer)
            writer.add_bias(role.module, _cast(read(b), job, a))
        return replace(_measured(record, a, b), how="bias", seconds=time.process_time() - began)
    if _factored(role, job) and role.kind != "bias" and not job.within(role.module):
        d, norm = _difference(a, b, name)
        d = d.T if role.kind == "embedding" else d.T.contiguous() if role.kind == "conv1d" else d
        energy = lowrank.energy_of(d)
        noise = min(_noise(b, norm) / energy, 1.0) if energy else 0.0
        found = _factor(d, name, options, energy * noise)
        record = _with_factors(
            replace(
                record, difference=math.sqrt(energy), relative=math.sqrt(energy) / norm if norm else None, noise=noise
            ),
            found,
        )
        if options.whole is None and (options.rank == 0 or found.rank * sum(d.shape) >= d.numel()):
            _write_whole(job, role.module, writer)
            return replace(record, how="whole", rank=None, kept=1.0, seconds=time.process_time() - began)
        writer.add_factors(role.module, _cast(found.b, job, a), _cast(found.a, job, a), role.kind)
        return replace(record, how="low rank", seconds=time.process_time() - began)
    how: How = "whole" if job.within(role.module) else "left out"
    record = _measured(record, a, b)
    return replace(record, how=how, kept=float(how == "whole"), seconds=time.process_time() - began)


def _factor(d: Tensor, name: str, options: ExtractOptions, floor: float) -> LowRank:
    rank = min(d.shape) if options.rank == 0 else options.rank
    return lowrank.factor(d, rank, share=options.energy, most=options.most, method=options.svd, name=name, floor=floor)


def _with_factors(record: TensorRecord, found: LowRank) -> TensorRecord:
    return replace(
        record,
        rank=found.rank,
        kept=found.kept,
        stable_rank=found.stable_rank,
        rank95=lowrank.rank_for(found.values, found.energy, SHARE) if found.whole else None,
        values=tuple(found.values[:VALUES].tolist()),
    )


def _difference(a: TensorFile, b: TensorFile, name: str) -> tuple[Tensor, float]:
    """The difference in float32, and the norm of the base."""
    base = read(a).float()
    norm = float(base.norm())
    d = read(b).float().sub_(base)
    if not (math.isfinite(norm) and torch.isfinite(d).all()):
        raise WeightsError(f"{name} holds NaN or infinity in one of the models: nothing is written")
    return d, norm


def _measured(record: TensorRecord, a: TensorFile, b: TensorFile) -> TensorRecord:
    """The record of a tensor that is not factored, compared in parts."""
    rows = a.shape[0] if a.shape else 1
    matrix = len(a.shape) == 2  # noqa: PLR2004
    spectral = matrix and min(a.shape) <= MAX_SPECTRUM
    short_side = spectral and a.shape[0] <= a.shape[1]
    gram = torch.zeros((min(a.shape),) * 2, dtype=torch.float64) if spectral else None
    energy, total = 0.0, 0.0
    step = rows if short_side or not a.shape else ROWS
    for begin in range(0, rows, max(step, 1)):
        part = None if not a.shape else slice(begin, begin + step)
        first, second = read(a, part).double(), read(b, part).double()
        d = second - first
        energy, total = energy + float((d**2).sum()), total + float((first**2).sum())
        if gram is not None:
            gram += d @ d.T if short_side else d.T @ d
    if not math.isfinite(energy + total):
        raise WeightsError(f"{record.name} holds NaN or infinity in one of the models: nothing is written")
    record = replace(record, difference=math.sqrt(energy), relative=math.sqrt(energy / total) if total else None)
    if gram is None or not energy:
        return record
    values = lowrank.spectrum(gram)
    return replace(
        record,
        stable_rank=energy / float(values[0]) ** 2,
        rank95=lowrank.rank_for(values, energy, SHARE),
        values=tuple(values[:VALUES].tolist()),
    )


def _noise(tuned: TensorFile, norm: float) -> float:
    """The energy of rounding a tensor of this norm to the type of the tuned model."""
    kind = {"BF16": torch.bfloat16, "F16": torch.float16}.get(tuned.kind)
    return 0.0 if kind is None else (torch.finfo(kind).eps * norm) ** 2 / 12


def _write_whole(job: Job, module: str, writer: AdapterWriter) -> None:
    writer.add_whole(module, _values(job, module))


def _values(job: Job, module: str) -> Iterator[tuple[str, Tensor]]:
    """The tuned tensors of a module; unchanged ones too, because PEFT keeps whole modules."""
    base = dict(tensors_of(job.base, job.roles, module))
    for name, one in tensors_of(job.tuned, job.roles, module):
        yield name, _cast(read(one), job, base[name])


def _cast(tensor: Tensor, job: Job, base: TensorFile) -> Tensor:
    if job.options.dtype != "same":
        return tensor.to(DTYPES[job.options.dtype])
    return tensor.to({"F32": torch.float32, "F64": torch.float64, "F16": torch.float16}.get(base.kind, torch.bfloat16))


def _zero_factors(job: Job, role: Role, writer: AdapterWriter) -> None:
    """Factors of nothing, so that PEFT has a place for the bias of a layer whose weight did not change."""
    (one,) = (one for name, one in tensors_of(job.base, job.roles, role.module) if name == "weight")
    conv1d = any(r.kind == "conv1d" and r.module == role.module for r in job.roles.by_name.values())
    shape = one.shape[::-1] if conv1d else one.shape
    factors = torch.zeros(shape[0], 1), torch.zeros(1, shape[1])
    writer.add_factors(role.module, *factors, "conv1d" if conv1d else "linear")


def _write_tokens(job: Job, folder: Path) -> int:
    """Write the rows of new tokens, and the tuned tokenizer's files."""
    whole = Checkpoint.open(job.tuned.name)
    writer = Writer(folder / TOKENS)
    for name, role in job.roles.by_name.items():
        if role.kind in {"embedding", "head"} and name in job.base.tensors and name in whole.tensors:
            rows = job.base.tensors[name].shape[0]
            if whole.tensors[name].shape[0] > rows:
                writer.add(full_name(name, job.roles), read(whole.tensors[name], slice(rows, None)))
    writer.close()
    for path in sorted(whole.folder.glob("*token*.json")):
        shutil.copy(path, folder / path.name)
    return writer.size


def _factored(role: Role, job: Job) -> bool:
    """Whether the change of a tensor is held by a layer with factors: a linear weight, or the bias of one."""
    if role.kind == "embedding":
        return job.options.embeddings == "lora" and role.module == job.roles.embedding and not job.added
    return role.kind in {"linear", "conv1d", "head"} or (role.kind == "bias" and role.linear)


def _chosen(name: str, options: ExtractOptions) -> bool:
    try:
        return (options.only is None or re.search(options.only, name) is not None) and (
            options.exclude is None or re.search(options.exclude, name) is None
        )
    except re.error as error:
        raise WeightsError(f"--only or --not is no regular expression ({error}): fix it") from error


def _without_tied(checkpoint: Checkpoint, roles: Roles) -> Checkpoint:
    """A checkpoint without a head that is a copy of the embedding."""
    if not roles.tied:
        return checkpoint
    kept = {
        name: one
        for name, one in checkpoint.tensors.items()
        if f"{roles.head}.weight" != name and (name not in roles.by_name or roles.by_name[name].kind != "head")
    }
    return replace(checkpoint, tensors=kept)


def _check_shapes(base: Checkpoint, tuned: Checkpoint, roles: Roles) -> int:
    """How many tokens the tuned vocabulary adds; a WeightsError if anything else differs in shape."""
    kinds = [str(one.config.get("model_type")) for one in (base, tuned)]
    if kinds[0] != kinds[1]:
        raise WeightsError(
            f"{base.name} is of type {kinds[0]} and {tuned.name} of type {kinds[1]}, so they have no difference of "
            "weights: refine transfer apply takes a difference to another architecture"
        )
    wrong, added = list[str](), {0}
    for name in sorted(base.tensors.keys() | tuned.tensors.keys()):
        a, b = base.tensors.get(name), tuned.tensors.get(name)
        if a is None or b is None:
            wrong.append(f"{name} is in {(base if b is None else tuned).name} alone")
        elif a.shape != b.shape:
            vocabulary = name in roles.by_name and roles.by_name[name].kind in {"embedding", "head"}
            if vocabulary and a.shape[1:] == b.shape[1:]:
                added.add(b.shape[0] - a.shape[0])
            else:
                wrong.append(f"{name} has shape {a.shape} in {base.name} and {b.shape} in {tuned.name}")
    if wrong:
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise WeightsError(f"{wrong[0]}{more}: name two models of one architecture")
    if min(added) < 0:
        raise WeightsError(f"the vocabulary of {tuned.name} has {-min(added)} rows fewer than that of {base.name}")
    return max(added)


def _head(one: TensorFile, shape: Sequence[int]) -> TensorFile:
    """The first rows of a tensor."""
    if tuple(shape) == one.shape:
        return one
    return replace(one, shape=tuple(shape), size=one.size // one.shape[0] * shape[0])


def _check_related(job: Job) -> None:
    """Refuse models that were not trained from one another, by some linear weights."""
    linear = [name for name in job.changed if job.roles.by_name[name].kind in {"linear", "conv1d"}]
    some = linear[:: max(len(linear) // LOOKED_AT, 1)]
    sizes = []
    for name in some:
        d, norm = _difference(job.base.tensors[name], job.tuned.tensors[name], name)
        sizes.append(float(d.norm()) / max(norm, 1e-30))
    if sizes and median(sizes) > UNRELATED:
        raise WeightsError(
            f"{job.base.name} and {job.tuned.name} were not trained from one another: half of their linear weights "
            f"differ by {median(sizes):.2f} of their size or more, as unrelated models do; --force extracts it anyway"
        )


def _notes(job: Job, records: dict[str, TensorRecord]) -> Iterator[str]:
    out = [name for name, one in records.items() if one.how == "left out"]
    if out:
        yield f"{len(out)} changed tensors are left out (by --whole), such as {out[0]}"
    most = [one for one in records.values() if one.rank == job.options.most and one.kept < job.options.energy]
    if most and job.options.rank is None:
        yield f"{len(most)} weights keep less than {job.options.energy:.0%} at --max-rank, such as {most[0].name}"
    noisy = [one.name for one in records.values() if one.noise > 0.5]  # noqa: PLR2004  mostly rounding
    if noisy:
        yield f"the difference of {len(noisy)} weights is mostly rounding, such as {noisy[0]}"
    if job.roles.tied and any(one.part == "embeddings" and one.how == "low rank" for one in records.values()):
        yield (
            "PEFT 0.21 adds factors of an embedding twice when it merges them into a tied model: load the adapter as "
            f"it is, or merge it by refine transfer apply ADAPTER {job.base.name} --as model --out DIR"
        )
    if job.added:
        yield f"the vocabulary grew by {job.added} tokens, whose rows are in {TOKENS}"


def _unchanged(job: Job, name: str) -> TensorRecord:
    role = job.roles.by_name[name]
    return TensorRecord(name, role.part, role.layer, role.name, job.base.tensors[name].shape, "unchanged")


def _place(job: Job, name: str) -> tuple[int, str]:
    layer = job.roles.by_name[name].layer
    return (-1 if layer is None else layer, name)
