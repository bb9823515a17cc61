"""The kinds of model that an experiment trains, once."""

from __future__ import annotations

KIND_NAMES = {
    "cvfp": "CVFP",
    "random_block": "random frozen block",
    "gru": "GRU of the same size",
    "kneser_ney": "Kneser-Ney 5-gram",
    "unigram": "unigram",
}


KINDS = ("cvfp", "random_block", "gru", "kneser_ney", "unigram")
"""The network, and its baselines: a random frozen context block, a GRU of the same size, counts."""


CHEAP_KINDS = ("kneser_ney", "unigram")
"""Baselines of counts: no estimate of time is needed."""
