"""The kinds of model that an experiment trains: one row of this table per kind."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelKind:
    """A kind of model; a `cheap` one only counts n-grams, which takes seconds, so its time is not estimated."""

    name: str
    label: str
    baseline: bool = True
    cheap: bool = False


CVFP = ModelKind("cvfp", "CVFP", baseline=False)
RANDOM_BLOCK = ModelKind("random_block", "random frozen block")
GRU = ModelKind("gru", "GRU of the same size")
KNESER_NEY = ModelKind("kneser_ney", "Kneser-Ney 5-gram", cheap=True)
UNIGRAM = ModelKind("unigram", "unigram", cheap=True)

KINDS = {kind.name: kind for kind in (CVFP, RANDOM_BLOCK, GRU, KNESER_NEY, UNIGRAM)}
"""All kinds by name, in the order of every table."""
BASELINES = tuple(name for name, kind in KINDS.items() if kind.baseline)
