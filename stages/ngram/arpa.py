"""Models as ARPA, the text format of n-gram models."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from stages.files import save
from stages.ngram.counts import Column
from stages.ngram.kneser_ney import Section

_CHUNK = 1 << 20  # n-grams converted to text at a time


def write(sections: Sequence[Section], words: Column, vocabulary: pl.Series, out: Path) -> None:
    """Write a model; `words` is the corpus that `Section.ends` refers to."""

    def into(aside: Path) -> None:
        with aside.open("wb") as file:
            sizes = b"".join(b"ngram %d=%d\n" % (section.order, len(section)) for section in sections)
            file.write(b"\\data\\\n" + sizes)
            for section in sections:
                file.write(b"\n\\%d-grams:\n" % section.order)
                for start in range(0, len(section), _CHUNK):
                    file.write(_lines(section, slice(start, start + _CHUNK), words, vocabulary))
            file.write(b"\n\\end\\\n")

    save(out, into)


def _lines(section: Section, part: slice, words: Column, vocabulary: pl.Series) -> memoryview:
    """Lines of some n-grams: log10 probability, words, log10 backoff."""
    lines = pl.DataFrame({"p": section.probs[part], "gram": _text(section, part, words, vocabulary)})
    if section.backoffs is not None:
        lines = lines.with_columns(b=section.backoffs[part])
    text = io.BytesIO()  # polars' own error on a full disk has no error number
    lines.write_csv(text, include_header=False, separator="\t", quote_style="never")
    return text.getbuffer()


def _text(section: Section, part: slice, words: Column, vocabulary: pl.Series) -> pl.Series:
    if section.order == 1:
        return vocabulary[part]
    ends = section.ends[part].astype(np.int64)
    columns = [vocabulary.gather(words[ends - back]) for back in reversed(range(section.order))]
    return pl.select(pl.concat_str(columns, separator=" ")).to_series()
