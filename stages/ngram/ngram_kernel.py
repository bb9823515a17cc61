"""Loops of n-gram training: words to numbers, n-grams of each order, their probabilities, and KenLM's hash tables."""
# ruff: noqa: ANN401, PLR0917 - numba infers the types, and compiled functions take numbers and arrays by position

from typing import Any

import numpy as np

U32, U64, F32, F64 = np.uint32, np.uint64, np.float32, np.float64
BOS, EOS = U32(1), U32(2)
"""Ids of <s> and </s>; <unk> is 0, and the words follow in order of first appearance, as in lmplz."""
NONE = U32(0xFFFFFFFF)
"""The id, rank or index of what does not exist."""
SPACE = np.uint8(32)
MURMUR, S47, S8 = U64(0xC6A4A7935BD1E995), U64(47), U64(8)
KEY_FACTOR, WORD_FACTOR = U64(8978948897894561157), U64(17894857484156487943)
"""Factors of `CombineWordHash` (kenlm, lm/search_hashed.hh)."""
S32, BYTE, LOWER = U64(32), U64(0xFF), U64(0xFFFFFFFF)
FEW = 48
"""Maximum number of pairs that insertion sorts."""
LARGE_COUNT = U32(3)


def _murmur(text: Any, begin: Any, end: Any) -> Any:
    """MurmurHash64A with seed 0, by which kenlm knows a word (lm/vocab.cc)."""
    h, at = U64(end - begin) * MURMUR, begin
    while at + 8 <= end:
        k = U64(0)
        for i in range(8):
            k |= U64(text[at + i]) << (S8 * U64(i))
        k *= MURMUR
        k ^= k >> S47
        h = (h ^ (k * MURMUR)) * MURMUR
        at += 8
    if at < end:
        for i in range(end - at):
            h ^= U64(text[at + i]) << (S8 * U64(i))
        h *= MURMUR
    h = (h ^ (h >> S47)) * MURMUR
    return h ^ (h >> S47)


def hash_words(text: Any, offsets: Any, hashes: Any) -> Any:
    """Write the hash of each word; `offsets`, [n + 1]."""
    for i in range(len(hashes)):
        hashes[i] = _murmur(text, offsets[i], offsets[i + 1])
    return len(hashes)


def _slot(key: Any, keys: Any, ids: Any) -> Any:
    """Where a key is in a table, or the empty slot where it belongs."""
    mask = U64(len(keys) - 1)
    at = key & mask
    while ids[at] != NONE and keys[at] != key:
        at = (at + U64(1)) & mask
    return at


def fill(hashes: Any, count: Any, keys: Any, ids: Any) -> Any:
    """Fill a table whose `ids` are `NONE` with the first `count` hashes; its size is a power of 2."""
    for i in range(count):
        at = _slot(hashes[i], keys, ids)
        keys[at], ids[at] = hashes[i], U32(i)
    return count


def number(text: Any, offsets: Any, keys: Any, ids: Any, hashes: Any, known: Any, places: Any, words: Any) -> Any:
    """Write the ids of the words of lines, each line framed by <s> and </s>; return how many.

    `offsets`, [lines + 1], are where lines begin in `text`. A new word is added to the table (`keys`, `ids`), its hash
    to `hashes`, its begin and end in `text` to `places` [words, 2]. It stops before a line that might fill more than
    half of the table. `known`, [3], is the number of known words, of words that are special tokens, and of lines read.
    """
    filled, before = 0, known[0]
    known[2] = 0
    for line in range(len(offsets) - 1):
        at, stop = offsets[line], offsets[line + 1]
        if 2 * (known[0] + (stop - at) // 2 + 1) > len(keys):
            break
        words[filled] = BOS
        filled += 1
        while at < stop:
            begin = at
            while at < stop and text[at] != SPACE:
                at += 1
            if at > begin:
                key = _murmur(text, begin, at)
                slot = _slot(key, keys, ids)
                if ids[slot] == NONE:
                    keys[slot], ids[slot] = key, U32(known[0])
                    hashes[known[0]] = key
                    places[known[0] - before, 0], places[known[0] - before, 1] = begin, at
                    known[0] += 1
                words[filled] = ids[slot]
                known[1] += ids[slot] <= EOS
                filled += 1
            at += 1
        words[filled] = EOS
        filled += 1
        known[2] = line + 1
    return filled


def tally(numbers: Any, tallies: Any) -> Any:
    """Count numbers; the last of `tallies` counts all that are larger, too."""
    for i in range(len(numbers)):
        tallies[min(np.int64(numbers[i]), len(tallies) - 1)] += 1
    return len(numbers)


def _sort(pairs: Any, begin: Any, end: Any, spare: Any, tallies: Any, passes: Any) -> None:
    """Sort some pairs by their upper half: few by insertion, more by radix, a byte at a time; stable."""
    if end - begin <= FEW:
        for i in range(begin + 1, end):
            pair, at = pairs[i], i
            while at > begin and pairs[at - 1] >> S32 > pair >> S32:
                pairs[at] = pairs[at - 1]
                at -= 1
            pairs[at] = pair
        return
    for k in range(passes):
        shift = S32 + S8 * U64(k)
        for digit in range(257):
            tallies[digit] = 0
        for i in range(begin, end):
            tallies[((pairs[i] >> shift) & BYTE) + U64(1)] += 1
        for digit in range(256):
            tallies[digit + 1] += tallies[digit]
        for i in range(begin, end):
            digit = (pairs[i] >> shift) & BYTE
            spare[tallies[digit]] = pairs[i]
            tallies[digit] += 1
        for i in range(begin, end):
            pairs[i] = spare[i - begin]


def partition(occurrences: Any, most: Any, firsts: Any, begins: Any, shift: Any, table: Any) -> Any:
    """Cut the n-grams of an order into runs of at most `most` occurrences, or of one n-gram; return how many runs.

    Written are the first rank of each run, the number of occurrences before it, and these of what follows the last run;
    and to `table`, for each rank that is a multiple of 2^shift, its run.
    """
    runs, total = 0, np.int64(0)
    firsts[0], begins[0] = 0, 0
    for rank in range(len(occurrences)):
        after = total + np.int64(occurrences[rank])
        if rank > firsts[runs] and after - begins[runs] > most:
            runs += 1
            firsts[runs], begins[runs] = rank, total
        if (rank >> shift) << shift == rank:
            table[rank >> shift] = U32(runs)
        total = after
    firsts[runs + 1], begins[runs + 1] = len(occurrences), total
    return runs + 1


def distribute(
    words: Any, order: Any, ranks: Any, firsts: Any, filled: Any, shift: Any, table: Any, entries: Any
) -> Any:
    """Write (rank, position) of the n-grams that a word precedes to the run of their rank, in order of position.

    `filled` is where the next entry of each run goes.
    """
    for i in range(order, len(words)):
        rank = ranks[i]
        if rank != NONE and words[i - order + 1] != BOS:
            run = table[rank >> U32(shift)]
            while firsts[run + 1] <= rank:
                run += U32(1)
            entries[filled[run]] = (U64(rank) << S32) | U64(i)
            filled[run] += 1
    return len(words)


def extend(
    words: Any,
    passes: Any,
    order: Any,
    ranks: Any,
    occurrences: Any,
    firsts: Any,
    begins: Any,
    filled: Any,
    entries: Any,
    starts: Any,
    befores: Any,
    pairs: Any,
    spare: Any,
    tallies: Any,
    parent: Any,
    at: Any,
    context: Any,
    count: Any,
    extensions: Any,
    last: Any,
) -> Any:
    """Write the n-grams one word longer than those of an order, in suffix order; return how many.

    A run of `distribute` is scattered to the n-grams that end at its positions, then sorted by the word before. `ranks`
    and `occurrences` are `ending` and `count` of the order; `passes` is the number of bytes of the largest word id.
    Scratch space for a run: `starts` (one per n-gram), `befores`, `pairs`, `spare` (one per entry); `tallies` [257].

    Written are the columns of the longer n-grams (`parent`, `at`, `context`, `count`), and `extensions`: the adjusted
    counts of the given ones. Unless it is the `last` order, the ranks in `entries` become those of the longer n-grams.
    """
    size = 0
    for run in range(len(begins) - 1):
        first, begin = firsts[run], begins[run]
        total: Any = np.int64(0)
        for rank in range(first, firsts[run + 1]):
            starts[rank - first] = U32(total)
            total += np.int64(occurrences[rank])
        for j in range(filled[run] - begin):
            entry = entries[begin + j]
            place, i = np.int64(entry >> S32) - first, np.int64(entry & LOWER)
            pairs[starts[place]] = (U64(words[i - order]) << S32) | U64(j)
            starts[place] += U32(1)
            befores[j] = ranks[i - 1]
        total = np.int64(0)
        for rank in range(first, firsts[run + 1]):
            before, seen, end = size, NONE, np.int64(starts[rank - first])
            _sort(pairs, total, end, spare, tallies, passes)
            for k in range(total, end):
                word, own = U32(pairs[k] >> S32), np.int64(pairs[k] & LOWER)
                if word != seen:
                    parent[size], at[size] = U32(rank), U32(entries[begin + own] & LOWER)
                    context[size], count[size] = befores[own], U32(0)
                    size, seen = size + 1, word
                count[size - 1] += U32(1)
                befores[own] = U32(size - 1)
            total += np.int64(occurrences[rank])
            begins_sentence = size == before and order > 1  # nothing is to the left of <s>
            extensions[rank] = occurrences[rank] if begins_sentence else U32(size - before)
        for j in range(0 if last else filled[run] - begin):
            entries[begin + j] = (U64(befores[j]) << S32) | (entries[begin + j] & LOWER)
    return size


def place(entries: Any, begins: Any, filled: Any, block: Any, ending: Any) -> Any:
    """Write for each position the rank of the n-gram that ends there, or `NONE`, `block` positions at a time.

    `entries` are in order of position in each run, of which `begins` is changed.
    """
    for start in range(0, len(ending), block):
        stop = min(start + block, len(ending))
        for i in range(start, stop):
            ending[i] = NONE
        for run in range(len(begins) - 1):
            k = begins[run]
            while k < filled[run] and np.int64(entries[k] & LOWER) < stop:
                ending[np.int64(entries[k] & LOWER)] = U32(entries[k] >> S32)
                k += 1
            begins[run] = k
    return len(ending)


def contexts(
    parent: Any,
    occurrences: Any,
    counts: Any,
    limit: Any,
    discounts: Any,
    slots: Any,
    context: Any,
    totals: Any,
    left: Any,
    is_context: Any,
    is_suffix: Any,
) -> Any:
    """Replace the rank of each n-gram's `context` by its slot, and add up what is known of each context.

    `slots` is `slot` of the order below; `limit` and `discounts` [4] are those of this order.
    Of each kept n-gram below: `totals`, the sum of the counts of its continuations; `left`, the part of it that goes to
    the backoff; whether it is the context, or the suffix, of a kept n-gram.
    """
    for i in range(len(parent)):
        slot = slots[context[i]]
        context[i] = slot
        kept = occurrences[i] > limit
        if slot != NONE:
            totals[slot] += F64(counts[i])
            left[slot] += F64(discounts[min(counts[i], LARGE_COUNT)]) if kept else F64(counts[i])
            if kept:
                is_context[slot] = np.uint8(1)
        if kept:
            is_suffix[slots[parent[i]]] = np.uint8(1)
    return len(parent)


def interpolate(
    words: Any,
    order: Any,
    parent: Any,
    at: Any,
    occurrences: Any,
    counts: Any,
    limit: Any,
    discounts: Any,
    slots: Any,
    context: Any,
    totals: Any,
    backoffs: Any,
    probs_below: Any,
    keys_below: Any,
    slot: Any,
    ends: Any,
    probs: Any,
    keys: Any,
) -> Any:
    """Write `slot` of an order's n-grams, and the end, probability and key of each kept one; return how many.

    `totals` and `backoffs` are those of the contexts (float32). A key is kenlm's hash of the words, last word first.
    """
    kept = 0
    for i in range(len(parent)):
        slot[i] = NONE
        if occurrences[i] > limit:
            below, before = slots[parent[i]], context[i]
            own = (F32(counts[i]) - discounts[min(counts[i], LARGE_COUNT)]) / totals[before]
            probs[kept] = own + backoffs[before] * probs_below[below]
            first = words[np.int64(at[i]) - order + 1]
            keys[kept] = (keys_below[below] * KEY_FACTOR) ^ ((U64(first) + U64(1)) * WORD_FACTOR)
            slot[i], ends[kept] = U32(kept), at[i]
            kept += 1
    return kept


def insert(keys: Any, values: Any, table: Any) -> Any:
    """Insert keys with `values` [n, k] into a table [buckets, 2 + k], all uint32, by linear probing as kenlm does."""
    buckets = U64(len(table))
    for i in range(len(keys)):
        low, high = U32(keys[i]), U32(keys[i] >> S32)
        at = keys[i] % buckets
        while table[at, 0] != U32(0) or table[at, 1] != U32(0):
            at = at + U64(1) if at + U64(1) < buckets else U64(0)
        table[at, 0], table[at, 1] = low, high
        for k in range(values.shape[1]):
            table[at, 2 + k] = values[i, k]
    return len(keys)
