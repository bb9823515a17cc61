"""The kinds of model that an experiment trains: one row of this table per kind."""

from dataclasses import dataclass

from trainer import TrainerError


class NetworkError(TrainerError):
    """An unknown network."""


@dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    Attributes:
        name: in folders and records.
        label: for a reader.
        about: what a network is, as a phrase.
        baseline: whether it is trained beside another network.
        steps: factor of the steps of phase 2.
        rate: factor of the learning rate of phase 2.
        cheap: whether it only counts n-grams, which takes seconds, so its time is not estimated.
    """

    name: str
    label: str
    about: str = ""
    baseline: bool = True
    steps: float = 1.0
    rate: float = 1.0
    cheap: bool = False


CVFP = ModelKind(
    *("cvfp", "CVFP", "a small language model whose context vectors come from a fixed-point iteration"), baseline=False
)
TRANSFORMER = ModelKind(
    *("transformer", "Transformer", "a small decoder transformer of CVFP's size"),
    baseline=False,
    steps=0.75,
    rate=5 / 3,
)
"""It takes fewer steps so that it costs no more than CVFP (tests/bench/README.md, networks)."""
RANDOM_BLOCK = ModelKind("random_block", "random frozen block")
GRU = ModelKind("gru", "GRU", "a small recurrent network of CVFP's size")
KNESER_NEY = ModelKind("kneser_ney", "Kneser-Ney 5-gram", cheap=True)
UNIGRAM = ModelKind("unigram", "unigram", cheap=True)

KINDS = {kind.name: kind for kind in (CVFP, TRANSFORMER, RANDOM_BLOCK, GRU, KNESER_NEY, UNIGRAM)}
"""All kinds by name, in the order of every table."""
NETWORKS = (CVFP.name, TRANSFORMER.name, GRU.name)
"""The networks by which corpora can be compared; of several, the verdict is about the first."""


def networks(text: str) -> tuple[str, ...]:
    """The networks of `--network`: one, or all; a NetworkError that lists them."""
    if text not in {*NETWORKS, "all"}:
        raise NetworkError(f"--network is {text!r}, expected {', '.join(NETWORKS)} or all")
    return NETWORKS if text == "all" else (text,)


def baselines(trained: tuple[str, ...]) -> tuple[str, ...]:
    """The baselines beside some networks; a random frozen block is one of CVFP alone."""
    return tuple(
        name
        for name, kind in KINDS.items()
        if kind.baseline and name not in trained and (name != RANDOM_BLOCK.name or CVFP.name in trained)
    )
