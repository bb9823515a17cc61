"""Expressions over replies: whether one declines, mentions being a model, contains code, stops in mid-sentence."""

import polars as pl

from stages.text.messages import FENCED, prose

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
REFUSAL = "(?i)" + "|".join(
    (
        rf"\b(?:sorry|apologi[sz]e)\b[^.!?\n]{{0,60}}\bI ?{_CANNOT} {_HELP}\b",
        rf"^\W*(?:unfortunately, |no, |as an? [^.,\n]{{0,40}}, )?I ?{_CANNOT} {_HELP_WITH_THAT}\b",
        rf"\bas an? (?:AI|artificial|(?:large )?language)\b[^.!?\n]{{0,80}}\bI ?{_CANNOT} {_HELP}\b",
        r"\byour request (?:goes against|violates)\b",
        r"\b(?:against|violates?) my (?:programming|guidelines|ethical|principles)\b",
    )
)
"""Pattern of a reply that declines: an apology and a verb of helping, "I cannot assist", "As an AI ..., I cannot"."""

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
"""Pattern of a reply that mentions being an AI model."""

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


def plain(content: pl.Expr) -> pl.Expr:
    """Content with ASCII apostrophes, as the patterns expect."""
    return content.str.replace_all("’", "'", literal=True)  # noqa: RUF001 - the typographic apostrophe is meant


def fenced_chars(content: pl.Expr) -> pl.Expr:
    """Number of characters in fenced code blocks, fences included; an open fence extends to the end."""
    return content.str.len_chars().cast(pl.Int64) - content.str.replace_all(FENCED, "").str.len_chars()


def code_chars(content: pl.Expr) -> pl.Expr:
    """Number of characters in fenced blocks, and outside them in lines that look like code."""
    return content.str.len_chars().cast(pl.Int64) - prose(content).str.len_chars()


def stops_short(content: pl.Expr) -> pl.Expr:
    """Whether a reply stops in mid-sentence or inside a code fence.

    Any of three conditions is enough: a fence is open and code is at the end; the last line is prose (no list item,
    heading or table row) and its last word ends no sentence, or ends one rarely in a reply that is written in
    sentences; a long reply ends in prose without a mark, but at least four other lines of prose, and all of them, end
    with one. Poems, lists and writers who never use marks are therefore not counted.
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
