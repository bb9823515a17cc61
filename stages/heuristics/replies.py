"""What a reply says or shows: it declines, speaks of itself, carries code, stops in mid-sentence. Text expressions."""

from __future__ import annotations

import polars as pl

from stages.text.prose import FENCED, prose

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
# An apology alone refuses nothing ("I'm sorry, I could not find a table"): the verb must be one of helping or telling.
REFUSAL = "(?i)" + "|".join(
    (
        rf"\b(?:sorry|apologi[sz]e)\b[^.!?\n]{{0,60}}\bI ?{_CANNOT} {_HELP}\b",
        rf"^\W*(?:unfortunately, |no, |as an? [^.,\n]{{0,40}}, )?I ?{_CANNOT} {_HELP_WITH_THAT}\b",
        rf"\bas an? (?:AI|artificial|(?:large )?language)\b[^.!?\n]{{0,80}}\bI ?{_CANNOT} {_HELP}\b",
        r"\byour request (?:goes against|violates)\b",
        r"\b(?:against|violates?) my (?:programming|guidelines|ethical|principles)\b",
    )
)
"""A reply that declines: an apology and a verb of helping, a bare "I cannot assist", "As an AI ..., I cannot"."""

_MODEL = r"(?:AI|artificial intelligence|(?:large )?language model|machine learning model)"
_KIND = r"(?: (?:language )?(?:model|assistant|system|bot|program|chatbot))?"
_MAKER = r"(?: (?:developed|created|trained) by \w+)?"
SELF_REFERENCE = "(?i)" + "|".join(
    (
        rf"\bas (?:an? |your )?(?:\w+ ){{0,2}}?{_MODEL}{_KIND}{_MAKER},? (?:I|my|it|there|we|you)\b",
        rf"\bI(?: am|'m) (?:just |only |simply |merely |actually )?an? (?:\w+ ){{0,2}}?{_MODEL}\b",
        r"\bmy (?:training data|knowledge cutoff)\b",
        r"\b(?:trained|developed|created) by OpenAI\b",
    )
)
"""A reply that speaks of itself as a model."""

NO_FEELINGS = (
    r"(?i)\bI (?:do not|don't|cannot|can't) (?:actually |really |personally )?(?:have|hold|possess|feel|experience)"
    r"(?: any)?(?: personal| human| real| physical)?"
    r"(?: thoughts,?| feelings,?| beliefs,?| experiences,?| preferences,?)?(?: and| or)?(?: personal)?"
    r" (?:emotions|opinions)\b"
)
"""UltraChat 200k's own refinement drops dialogues whose assistant says "I do not have emotions" or "I don't have
opinions" (dataset card); the same in other words is taken with it."""


# Words that no finished sentence ends with; most prepositions do end some ("what is it for").
_DANGLING = (
    r"\b(?:the|an|and|or|but|because|although|(?:of|in|to|for|with|on|at|from|by|as|is|than|a) (?:the|a|an|their|your)"
    r"|if|such as|including|your|their|our|my|every|it's|und|der|les|los)$"
)
# Words that end one seldom, and hardly where the reply ends its other sentences with a mark.
_WEAK = (
    r"\b(?:to|from|at|is|are|was|were|be|very|really|can|could|would|should|will|has|had|they|we|i|rather|than|who|which"
    r"|how|i'm|you're|we're|they're)$"
)
_LIST_OR_HEADING = r"^\s*(?:[-*•‣◦·#>|+]|\(?\d{1,3}[.):]|\(?[A-Za-z][.)]\s|Step \d)"
_LINE = r"(?m)^(?:\S+[ \t]+){7,}\S+[ \t]*$"  # of eight words or more
_UNMARKED_LINE = r"(?m)^(?:\S+[ \t]+){7,}\S*[\p{L}\p{N},][ \t]*$"
_FRAGMENT = 5  # words: a shorter reply without an end mark is an answer, not a fragment
_SENTENCES = 15  # words: with a mark inside, a reply that long is written in sentences
_MARK_INSIDE = r"[.!?][\"”]?\s"
_LONG_REPLY = 100  # words: a reply that long, well marked until then, was cut where it ends without a mark
_MARKED_LINES = 4
_NOT_PROSE = r"\S*(?:://|#\w)\S*$|[=;{}<>]"
_PROSE_END = r"[.!?。！？।؟][\"'”’)\]]*$"  # noqa: RUF001 - other scripts' marks are meant


def plain(content: pl.Expr) -> pl.Expr:
    """Content with typographic apostrophes made plain, as the patterns expect it."""
    return content.str.replace_all("’", "'", literal=True)  # noqa: RUF001 - the typographic apostrophe is meant


def fenced_chars(content: pl.Expr) -> pl.Expr:
    """Characters in fenced code blocks, fences included; an open fence reaches to the end."""
    return content.str.len_chars().cast(pl.Int64) - content.str.replace_all(FENCED, "").str.len_chars()


def code_chars(content: pl.Expr) -> pl.Expr:
    """Characters in fenced blocks and, outside of them, in lines that look like code."""
    return content.str.len_chars().cast(pl.Int64) - prose(content).str.len_chars()


def stops_short(content: pl.Expr) -> pl.Expr:
    """Whether a reply stops in mid-sentence or inside a code fence.

    It does where a fence stays open and code stands at the end; where the last line is prose (no list item, heading,
    table row) and ends with a word that ends no sentence, or seldom one in a reply that is written in sentences; where
    a long reply ends in prose without a mark though every other line of prose in it, four at least, has one. Poems,
    lists and people who never set a mark are spared.
    """
    bare = content.str.strip_chars()
    last = bare.str.extract(r"([^\n]*)$", 1)
    prose_end = last.str.contains(_PROSE_END)
    open_fence = (bare.str.count_matches("```", literal=True) % 2 == 1) & ~prose_end
    words = bare.str.count_matches(r"\S+")
    lower = plain(last).str.to_lowercase()
    in_sentences = (words >= _SENTENCES) & last.str.contains(_MARK_INSIDE)
    dangling = (words >= _FRAGMENT) & lower.str.contains(_DANGLING) | in_sentences & lower.str.contains(_WEAK)
    marked = bare.str.count_matches(_LINE) - bare.str.count_matches(_UNMARKED_LINE)
    only_the_last = (bare.str.count_matches(_UNMARKED_LINE) == 1) & last.str.contains(_UNMARKED_LINE)
    cut = (words >= _LONG_REPLY) & only_the_last & (marked >= _MARKED_LINES) & ~last.str.contains(_NOT_PROSE)
    return open_fence | (~last.str.contains(_LIST_OR_HEADING) & (dangling | cut))
