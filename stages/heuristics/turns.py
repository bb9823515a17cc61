"""Signals of conversations: turns, roles, and replies that decline, repeat or stop in mid-sentence."""

import numpy as np
import polars as pl

from stages.heuristics.words import overlap_statistics, token_counts
from stages.text.characters import SPECIAL_CASED, lower_case, properties
from stages.text.compiled import Kernels
from stages.text.messages import by_row, prose, spoken
from stages.text.shingles import utf8_buffers

LOOPS = Kernels("stages.heuristics.turns_kernel", {"message_statistics": "u1* i8* u1* i4* u8* i8**"})

ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
_KNOWN_ROLES = (ASSISTANT, USER, SYSTEM, "tool", "function", "text")
_MIN_REPLY_WORDS = 5  # shorter replies ("You're welcome!") may repeat

CHAT_SIGNALS = pl.Schema(
    {
        **dict.fromkeys(("n_turns", "user_turns", "assistant_turns"), pl.Int64()),
        **dict.fromkeys(("has_system", "alternates"), pl.Boolean()),
        **dict.fromkeys(("first_role", "last_role"), pl.String()),
        **dict.fromkeys(("odd_roles", "empty_turns", "empty_replies"), pl.Int64()),
        **dict.fromkeys(("empty_last", "truncated_last"), pl.Boolean()),
        **dict.fromkeys(("refusals", "first_refusal", "ai_mentions", "first_ai_mention", "no_feelings"), pl.Int64()),
        **dict.fromkeys(("repeated_replies", "echoes"), pl.Int64()),
        **dict.fromkeys(("self_overlap", "user_overlap", "reply_repetition", "code_share"), pl.Float64()),
        "fenced_share": pl.Float64(),
        **dict.fromkeys(("prompt_chars", "prompt_words", "user_chars", "assistant_chars"), pl.Int64()),
        **dict.fromkeys(("max_turn_chars", "bad_chars"), pl.Int64()),
        "ends_in_call": pl.Boolean(),
        **dict.fromkeys(("tool_calls", "media_parts", "reasoning_chars"), pl.Int64()),
        **dict.fromkeys(("reasoning_share", "reasoning_repetition"), pl.Float64()),
    }
)

_CANNOT = (
    r"(?:can(?:no|')?t|can not|could not|couldn't|won't|will not|refuse to|must decline to"
    r"|(?: am|'m) (?:unable to|not (?:able|going) to))"
)
_HELP = (
    r"(?:fulfill|assist|help|comply|provide|give|offer|generate|create|write|produce|engage|discuss|answer|respond"
    r"|support|promote|endorse|encourage|condone|participate|continue|do (?:that|this)|share|recommend)"
)
_HELP_WITH_THAT = (
    r"(?:fulfill|assist|comply|help (?:you )?with (?:that|this)|support|promote|endorse|encourage|condone|engage in)"
)
# An apology alone is no refusal ("I'm sorry, I could not find a table"): a verb of helping or telling must follow.
REFUSALS = (
    rf"(?i)\b(?:sorry|apologi[sz]e)\b[^.!?\n]{{0,60}}\bI ?{_CANNOT} {_HELP}\b",
    rf"(?i)^\W*(?:unfortunately, |no, |as an? [^.,\n]{{0,40}}, )?I ?{_CANNOT} {_HELP_WITH_THAT}\b",
    rf"(?i)\bas an? (?:AI|artificial|(?:large )?language)\b[^.!?\n]{{0,80}}\bI ?{_CANNOT} {_HELP}\b",
    r"(?i)\byour request (?:goes against|violates)\b",
    r"(?i)\b(?:against|violates?) my (?:programming|guidelines|ethical|principles)\b",
)
"""Patterns of a reply that declines: an apology and a verb of helping, "I cannot assist", "As an AI ..., I cannot".

One after the other they are searched for six times as fast as all in one pattern."""

_MODEL = r"(?:AI|artificial intelligence|(?:large )?language model|machine learning model)"
_KIND = r"(?: (?:language )?(?:model|assistant|system|bot|program|chatbot))?"
_MAKER = r"(?: (?:developed|created|trained) by \w+)?"
SELF_REFERENCES = (
    rf"(?i)\bas (?:an? |your )?(?:\w+ ){{0,2}}?{_MODEL}{_KIND}{_MAKER},? (?:I|my|it|there|we|you)\b",
    rf"(?i)\bI(?: am|'m) (?:just |only |simply |merely |actually )?an? (?:\w+ ){{0,2}}?{_MODEL}\b",
    r"(?i)\bmy (?:training data|knowledge cutoff)\b",
    r"(?i)\b(?:trained|developed|created) by OpenAI\b",
)
"""Patterns of a reply that mentions being an AI model."""

NO_FEELINGS = (
    r"(?i)\bI (?:do not|don't|cannot|can't) (?:actually |really |personally )?(?:have|hold|possess|feel|experience)"
    r"(?: any)?(?: personal| human| real| physical)?"
    r"(?: thoughts,?| feelings,?| beliefs,?| experiences,?| preferences,?)?(?: and| or)?(?: personal)?"
    r" (?:emotions|opinions)\b"
)
"""Pattern of a reply that denies having emotions or opinions.

UltraChat 200k drops dialogues with "I do not have emotions" or "I don't have opinions" (dataset card); other wordings
are included here."""


# Words that no finished sentence ends with; most prepositions can end one ("what is it for").
_DANGLING = (
    r"\b(?:the|an|and|or|but|because|although|(?:of|in|to|for|with|on|at|from|by|as|is|than|a) (?:the|a|an|their|your)"
    r"|if|such as|including|your|their|our|my|every|it's|und|der|les|los)$"
)
# Words that rarely end a sentence, least of all in a reply whose other sentences end with a mark.
_WEAK = (
    r"\b(?:to|from|at|is|are|was|were|be|very|really|can|could|would|should|will|has|had|they|we|i|rather|than|who|which"
    r"|how|i'm|you're|we're|they're)$"
)
_LIST_OR_HEADING = r"^\s*(?:[-*•‣◦·#>|+]|\(?\d{1,3}[.):]|\(?[A-Za-z][.)]\s|Step \d)"
_LINE = r"(?m)^(?:\S+[ \t]+){7,}\S+[ \t]*$"  # of eight words or more
_UNMARKED_LINE = r"(?m)^(?:\S+[ \t]+){7,}\S*[\p{L}\p{N},][ \t]*$"
_FRAGMENT = 5  # words: a shorter reply without an end mark is an answer, not a fragment
_SENTENCES = 15  # words: a longer reply with a mark inside is written in sentences
_MARK_INSIDE = r"[.!?][\"”]?\s"
_LONG_REPLY = 100  # words: a longer reply with marks everywhere but at its end was cut
_MARKED_LINES = 4
_NOT_PROSE = r"\S*(?:://|#\w)\S*$|[=;{}<>]"
_PROSE_END = r"[.!?。！？।؟][\"'”’)\]]*$"  # noqa: RUF001 - other scripts' marks are meant


def _turns(batch: pl.DataFrame) -> pl.DataFrame:
    """One row per message: `row`, `role`, `content`, and the measurements of the message alone."""
    turns = spoken(batch)
    content, reply = pl.col("content"), pl.col("role") == ASSISTANT
    chars, unfenced, bare = prose(turns["content"])[1].T
    return turns.with_columns(
        message_statistics(turns["content"]),
        empty=(content.str.strip_chars() == "") & pl.col("calls").is_null() & (pl.col("media") == 0),
        chars=pl.Series(chars),
        fenced=pl.Series(chars - unfenced),
        code=pl.Series(chars - bare),
        reply=reply,
        is_turn=pl.col("role") != SYSTEM,
        nth=reply.cum_sum().cast(pl.Int64),
        **_phrases(turns),
    ).with_columns(**_conditions())


def _phrases(turns: pl.DataFrame) -> dict[str, pl.Series]:
    """Whether each message is a reply with such a phrase: `refusal`, `ai`, `no_feelings`."""
    reply = turns["role"] == ASSISTANT
    plain = _plain(turns["content"].filter(reply)).to_frame("plain")
    patterns = {"refusal": REFUSALS, "ai": SELF_REFERENCES, "no_feelings": (NO_FEELINGS,)}
    found = {}
    for name, some in patterns.items():
        there = plain.select(pl.any_horizontal(*[pl.col("plain").str.contains(each) for each in some])).to_series()
        found[name] = pl.repeat(value=False, n=len(turns), eager=True).scatter(reply.arg_true(), there)
    return found


def message_statistics(contents: pl.Series) -> pl.DataFrame:
    """`key` of each message's words in lower case, their number `words`, and `bad`, its number of bad characters."""
    odd = contents.str.contains_any(list(SPECIAL_CASED))
    if odd.any():
        contents = pl.select(pl.when(odd).then(contents.str.to_lowercase()).otherwise(contents)).to_series()
    keys, counts = np.empty(len(contents), np.uint64), np.empty((len(contents), 2), np.int64)
    LOOPS.call("message_statistics", *utf8_buffers(contents), properties(), lower_case(), keys, counts)
    return pl.DataFrame({"key": keys, "words": counts[:, 0], "bad": counts[:, 1]})


def _plain(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all("’", "'", literal=True)  # noqa: RUF001 - the typographic apostrophe is meant


def _conditions() -> dict[str, pl.Expr]:
    """Conditions of a message, by the signal that counts the messages that meet it; and `again`."""
    turn, reply, role = pl.col("is_turn"), pl.col("reply"), pl.col("role")
    user, role_before = role == USER, pl.when(pl.col("row") == pl.col("row").shift(1)).then(role.shift(1))
    long = reply & (pl.col("words") >= _MIN_REPLY_WORDS)
    return {
        "n_turns": turn,
        "user_turns": user,
        "assistant_turns": reply,
        "odd_roles": role.is_in(_KNOWN_ROLES).not_(),
        "empty_turns": turn & pl.col("empty"),
        "empty_replies": reply & pl.col("empty"),
        "refusals": pl.col("refusal"),
        "ai_mentions": pl.col("ai"),
        "no_feelings": pl.col("no_feelings"),
        "repeated_replies": long & pl.struct("row", "role", "key").is_first_distinct().not_(),
        "echoes": long & (role_before == USER) & (pl.col("key") == pl.col("key").shift(1)),
        "tool_calls": pl.col("calls").is_not_null(),
        "again": reply & (role_before == ASSISTANT) | user & (role_before == USER),
    }


def _aggregates() -> list[pl.Expr]:
    role, chars, nth = pl.col("role"), pl.col("chars"), pl.col("nth")
    counts = [name for name in _conditions() if name != "again"]
    reply = pl.col("reply")
    return [
        pl.col(counts).sum().cast(pl.Int64),
        (role == SYSTEM).any().alias("has_system"),
        pl.col("again").any().not_().alias("alternates"),
        role.filter("is_turn").first().alias("first_role"),
        role.last().alias("last_role"),
        pl.col("empty").last().alias("empty_last"),
        pl.col("content").last().alias("last"),
        (nth.filter("refusal").first() - nth.filter("reply").first()).alias("first_refusal"),
        (nth.filter("ai").first() - nth.filter("reply").first()).alias("first_ai_mention"),
        chars.filter("user_turns").sum().alias("user_chars"),
        chars.filter("reply").sum().alias("assistant_chars"),
        chars.max().alias("max_turn_chars"),
        (pl.col("code").sum() / chars.sum()).alias("code_share"),
        (pl.col("fenced").sum() / chars.sum()).alias("fenced_share"),
        pl.col("bad").sum().alias("bad_chars"),
        (reply & pl.col("tool_calls")).last().alias("ends_in_call"),
        pl.col("media").sum().alias("media_parts"),
        pl.col("reasoning").str.len_chars().sum().cast(pl.Int64).alias("reasoning_chars"),
    ]


def _overlaps(turns: pl.DataFrame, height: int) -> pl.DataFrame:
    """`self_overlap`, `user_overlap`, characters repeated `inside` replies; null if no reply has five words."""
    first = np.searchsorted(turns["row"].to_numpy(), np.arange(height + 1)).astype(np.int64)
    code = pl.when(pl.col("role") == USER).then(1).when(pl.col("role") == ASSISTANT).then(2).otherwise(0)
    roles = turns.select(code.cast(pl.UInt8)).to_series().to_numpy()
    some = pl.when(pl.col("grams") > 0)
    return overlap_statistics(turns["content"], first, roles).select(
        pl.when(pl.col("later") > 0).then(pl.col("repeated") / pl.col("later")).alias("self_overlap"),
        some.then(pl.col("from_user") / pl.col("grams")).alias("user_overlap"),
        some.then(pl.col("inside")).alias("inside"),
    )


def _reasoning(turns: pl.DataFrame, height: int) -> pl.DataFrame:
    """`thought_again`: characters of reasoning in 5-grams that occur earlier in the same reasoning."""
    thoughts = turns.filter(pl.col("reasoning").is_not_null())
    first = np.searchsorted(thoughts["row"].to_numpy(), np.arange(height + 1)).astype(np.int64)
    replies = np.full(len(thoughts), 2, np.uint8)
    return overlap_statistics(thoughts["reasoning"], first, replies).select(thought_again="inside")


def stops_short(replies: pl.Series) -> pl.Series:
    """Whether each reply stops in mid-sentence or inside a code fence.

    Any of three conditions is enough: a fence is open and code is at the end; the last line is prose (no list item,
    heading or table row) and its last word ends no sentence, or ends one rarely in a reply that is written in
    sentences; a long reply ends in prose without a mark, but at least four other lines of prose, and all of them, end
    with one. Poems, lists and writers who never use marks are therefore not counted.
    """
    bare = _plain(replies).str.strip_chars()
    unmarked = bare.str.contains(_PROSE_END).not_()  # the end of no sentence; none of the conditions holds at one
    short = bare.filter(unmarked).to_frame("bare").select(_is_cut(pl.col("bare"))).to_series()
    return pl.repeat(value=False, n=len(bare), eager=True).scatter(unmarked.arg_true(), short)


def _is_cut(bare: pl.Expr) -> pl.Expr:
    """Whether a stripped reply that does not end with a mark stops short."""
    last = bare.str.extract(r"([^\n]*)$", 1)
    open_fence = bare.str.count_matches("```", literal=True) % 2 == 1
    words = bare.str.count_matches(r"\S+")
    lower = last.str.to_lowercase()
    in_sentences = (words >= _SENTENCES) & last.str.contains(_MARK_INSIDE)
    dangling = (words >= _FRAGMENT) & lower.str.contains(_DANGLING) | in_sentences & lower.str.contains(_WEAK)
    marked = bare.str.count_matches(_LINE) - bare.str.count_matches(_UNMARKED_LINE)
    only_the_last = (bare.str.count_matches(_UNMARKED_LINE) == 1) & last.str.contains(_UNMARKED_LINE)
    cut = (words >= _LONG_REPLY) & only_the_last & (marked >= _MARKED_LINES) & ~last.str.contains(_NOT_PROSE)
    return open_fence | (~last.str.contains(_LIST_OR_HEADING) & (dangling | cut))


def chat_signals(batch: pl.DataFrame) -> pl.DataFrame:
    """The signals `CHAT_SIGNALS` of each conversation; without messages, counts are 0 and all others are null."""
    turns, height = _turns(batch), batch.height
    whole = by_row(height, turns.group_by("row").agg(_aggregates()))
    parts = [whole, _overlaps(turns, height), _reasoning(turns, height)]
    counts = [name for name, kind in CHAT_SIGNALS.items() if kind == pl.Int64 and not name.startswith("first_")]
    replied = whole.select(
        (pl.col("last_role") == ASSISTANT) & pl.col("empty_last").not_() & pl.col("ends_in_call").not_()
    ).to_series()
    truncated = pl.repeat(None, height, dtype=pl.Boolean, eager=True)
    truncated = truncated.scatter(replied.arg_true(), stops_short(whole["last"].filter(replied)))
    prompt = batch["prompt"].fill_null("")
    thought, chars = pl.col("reasoning_chars"), pl.col("assistant_chars")
    return (
        pl.concat(parts, how="horizontal")
        .with_columns(
            truncated.alias("truncated_last"),
            prompt.str.len_chars().alias("prompt_chars"),
            token_counts(prompt).alias("prompt_words"),
            pl.col("code_share", "fenced_share").fill_nan(None),
            (pl.col("inside") / chars).alias("reply_repetition"),
            pl.when(thought > 0).then(thought / (thought + chars)).alias("reasoning_share"),
            pl.when(thought > 0).then(pl.col("thought_again") / thought).alias("reasoning_repetition"),
        )
        .with_columns(pl.col(counts).fill_null(0))
        .select(pl.col(name).cast(kind) for name, kind in CHAT_SIGNALS.items())
    )
