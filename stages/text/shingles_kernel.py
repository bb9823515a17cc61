"""Compiled loops over Arrow string buffers: words, shingles, MinHash signatures, band keys, sets of shingles.

No Python object is made for a word or a shingle. `stages.text.shingles` calls the loops.
"""
# ruff: noqa: ANN401, PLR0917, PLR2004 - numba infers the types, compiled functions take numbers and arrays by position,
# and the numbers are those of UTF-8

from typing import Any

import numpy as np

from stages.text.hashes_kernel import U64, mix64, runs, sort_distinct

U8, U32 = np.uint8, np.uint32

SPACE, ALONE = U32(1), U32(1 << 31)
"""Table entry of white space (what `str.strip` strips), every other character outside words is 0; bit of an entry: the
character is a word by itself."""
WORD_SEED, WORD_FACTOR = U64(0xCBF29CE484222325), U64(0x9E3779B97F4A7C15)
BYTES_SEED, KEY_SEED = U64(0x8E2F5D3A6B1C9047), U64(0xA0761D6478BD642F)
KEY_FACTOR, CHECK_FACTOR = U64(0xE7037ED1A0B428DB), U64(0x8EBC6AF09C88C6E3)
B29, B32 = U64(29), U64(32)
S13, S16 = U32(13), U32(16)


def _mix32(h: Any) -> Any:
    """The finalizer of MurmurHash3 (32 bits), which datasketch 2.0 puts before its "affine32" permutations."""
    h = U32((h ^ (h >> S16)) * U32(0x85EBCA6B))
    h = U32((h ^ (h >> S13)) * U32(0xC2B2AE35))
    return h ^ (h >> S16)


def character(text: Any, at: Any) -> Any:
    """The code point at a byte (int64), and the position after it. Arrow strings are valid UTF-8."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (np.int64(text[at + 1]) & 0x3F), at + 2
    last_two = ((np.int64(text[at + 1]) & 0x3F) << 6) | (np.int64(text[at + 2]) & 0x3F)
    if first < 0xF0:
        return ((first & 0x0F) << 12) | last_two, at + 3
    return ((first & 0x07) << 18) | (last_two << 6) | (np.int64(text[at + 3]) & 0x3F), at + 4


def _words(text: Any, start: Any, stop: Any, table: Any, words: Any) -> Any:
    """Write the hashes of a text's words to `words`, and return their number.

    Every character writes the hash so far, and the end of a word only advances the position: this saves one
    mispredicted branch per word.
    """
    count, at, hashed = U64(0), U64(start), WORD_SEED
    while at < U64(stop):
        first = text[at]
        if first < U8(0x80):
            entry = table[U64(first)]
            at += U64(1)
        else:
            code, after = character(text, np.int64(at))
            at, entry = U64(after), table[code]
            if entry >= ALONE:
                words[count] = hashed
                count += U64(hashed != WORD_SEED)
                words[count] = (WORD_SEED ^ U64(entry ^ ALONE)) * WORD_FACTOR
                count += U64(1)
                hashed = WORD_SEED
                continue
        inside = entry > SPACE
        words[count] = hashed
        count += U64((not inside) & (hashed != WORD_SEED))
        hashed = (hashed ^ U64(entry)) * WORD_FACTOR if inside else WORD_SEED
    if hashed != WORD_SEED:
        words[count] = hashed
        count += U64(1)
    for i in range(count):
        words[i] = mix64(words[i])
    return np.int64(count)


def _stripped(text: Any, start: Any, stop: Any, table: Any) -> Any:
    """Where a text begins and ends after stripping white space."""
    first, last, at = stop, stop, start
    while at < stop:
        code, after = character(text, at)
        if table[code] != SPACE:
            first, last = min(first, at), after
        at = after
    return first, last


def _key(words: Any, count: Any) -> Any:
    """A 128-bit hash of a sequence of word hashes."""
    key, check = KEY_SEED, WORD_SEED
    for i in range(count):
        key = (key ^ words[i]) * KEY_FACTOR
        key ^= key >> B32
        check = (check + words[i]) * CHECK_FACTOR
        check ^= check >> B29
    return mix64(key ^ U64(count)), mix64(check + U64(count))


def split(text: Any, offsets: Any, table: Any, words: Any, ends: Any, keys: Any) -> Any:
    """Word hashes of texts, one text after the other, and the key of each text's words, or of its bytes if it has none.

    `offsets` and `ends`, [n + 1], are where each text begins in `text` and in `words`, and where the last one ends;
    `words` is one longer than the number of bytes; `keys` is [n, 2]. Returns the number of words.
    """
    ends[0] = 0
    for row in range(len(offsets) - 1):
        start, stop, begin = offsets[row], offsets[row + 1], ends[row]
        count = _words(text, start, stop, table, words[begin:])
        if count:
            keys[row, 0], keys[row, 1] = _key(words[begin:], count)
        else:
            first, last = _stripped(text, start, stop, table)
            for i in range(first, last):
                words[begin + i - first] = BYTES_SEED ^ U64(text[i])
            keys[row, 0], keys[row, 1] = _key(words[begin:], last - first)
            keys[row, 0] ^= BYTES_SEED
        ends[row + 1] = begin + count
    return ends[len(offsets) - 1]


def _shingles(words: Any, count: Any, key: Any, width: Any, shingles: Any) -> Any:
    """Hashes of each run of `width` words; a text of fewer words is one shingle, its own key."""
    if count < width:
        shingles[0] = key
        return 1
    return runs(words, count, width, shingles)


def _sign(shingles: Any, count: Any, factors: Any, terms: Any, hashes: Any, signature: Any) -> None:
    """The minimum of each permutation over the shingles: datasketch's "affine32", a * h + b mod 2**32."""
    for i in range(count):
        hashes[i] = _mix32(U32(shingles[i] >> B32))
    for k in range(len(factors)):
        factor, term, least = factors[k], terms[k], U32(0xFFFFFFFF)
        for i in range(count):
            value = U32(factor * hashes[i] + term)
            least = min(least, value)
        signature[k] = least


def sign(
    words: Any, ends: Any, keys: Any, width: Any, factors: Any, terms: Any, shingles: Any, hashes: Any, signatures: Any
) -> Any:
    """MinHash signatures, [n, permutations], from what `split` fills: datasketch's, of the upper half of the hashes.

    `shingles` and `hashes` are scratch space for those of the longest text.
    """
    for row in range(len(keys)):
        begin = ends[row]
        count = _shingles(words[begin:], ends[row + 1] - begin, keys[row, 0], width, shingles)
        _sign(shingles, count, factors, terms, hashes, signatures[row])
    return len(keys)


def fold(signatures: Any, rows: Any, bands: Any) -> Any:
    """Write the keys of bands, uint32 [n, bands], each of `rows` columns of signatures, uint32 [n, permutations]."""
    for row in range(len(bands)):
        for band in range(bands.shape[1]):
            folded = KEY_SEED
            for k in range(band * rows, (band + 1) * rows):
                folded = (folded ^ U64(signatures[row, k])) * KEY_FACTOR
                folded ^= folded >> B29
            bands[row, band] = U32(mix64(folded) >> B32)
    return len(bands)


def distinct(words: Any, ends: Any, keys: Any, width: Any, spare: Any, starts: Any, sets: Any, set_ends: Any) -> Any:
    """Write the sorted set of each text's shingles, uint64, one after the other; `set_ends` (int64 [n]) are their ends.

    Scratch space: `spare` (uint64) is as long as the shingles of the longest text, `starts` (int64) twice as long plus
    three. `sets` is as long as the shingles of all texts, repetitions included.
    """
    filled = 0
    for row in range(len(keys)):
        begin = ends[row]
        count = _shingles(words[begin:], ends[row + 1] - begin, keys[row, 0], width, sets[filled:])
        filled += sort_distinct(sets[filled:], count, spare, starts)
        set_ends[row] = filled
    return filled
