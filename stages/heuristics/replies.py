"""What a message says, by patterns: replies that decline, deny, or are put together wrongly; turns that only thank.

Patterns that begin with `^` look at the beginning of a reply alone, which costs almost nothing.
"""

import polars as pl

_APOSTROPHE = "’"  # noqa: RUF001 - the typographic apostrophe is meant

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

_SORRY = (
    r"(?:(?:(?:I'm|I am) (?:sorry|afraid)|sorry|unfortunately|I apologi[sz]e"
    r"|as an? (?:AI|artificial|(?:large )?language)[^.,\n]{0,40}),? (?:but |that )?)?"
)
_KIND_OF = (
    r"(?:(?:the|any|a|direct|real-time|up-to-date|current|latest|recent|specific|detailed|exact|necessary|most|more"
    r"|available|internal|live|external|updated|complete|additional|further|personal) ){0,4}"
)
NO_ACCESS = (
    rf"(?i)^\W*{_SORRY}I(?: (?:do not|don't) (?:currently |actually )?have {_KIND_OF}"
    r"(?:access|information|details?|data|knowledge|updates?|news|list|database|statistics)\b"
    r"|(?:'m| am) (?:currently )?(?:unable|not (?:able|capable)) (?:to|of) "
    r"(?:provid|access|check|verify|retriev|brows|search|interpret|analy|recommend|giv|shar|offer|read|view)"
    r"| (?:can ?not|can't) (?:access|browse|retrieve|look up|verify|present|display)\b)"
)
"""Pattern of a reply that begins with what it lacks: access, information, the ability to look something up."""
NO_TEXT = (
    rf"(?i)^\W*{_SORRY}I (?:(?:do not|don't) have (?:access to )?|(?:would |will )?need )(?:any |the )?"
    r"(?:exact |specific |detailed |given |full )*(?:information or )?(?:text|passage|article|document|blog)\b"
)
"""Pattern of a reply that begins with the claim that the text that it is asked about is missing."""

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
    (
        r"\b(?:I|i) (?:do not|don't|cannot|can't) (?:actually |really |personally )?"
        r"(?:have|hold|possess|feel|experience)(?: any| an?)?(?:(?: personal| human| real| physical| subjective)?"
        r"(?: thoughts,?| feelings,?| beliefs,?| experiences?,?| preferences?,?)?(?: and| or)?(?: personal)?"
        r" (?:emotions|opinions|taste(?:s| buds)?)"
        r"| (?:personal (?:preferences?|opinion|feelings|beliefs|views|tastes?)|physical (?:body|form)))\b"
    ),
)
"""Patterns of a reply that denies having emotions, opinions, preferences or a body.

UltraChat 200k drops dialogues with "I do not have emotions" or "I don't have opinions" (dataset card); other wordings
are included here."""

_QUESTION_WORD = r"(?:what|who|whom|whose|when|where|which|how|why|is|was|were|does|did|has)"
OWN_QUESTION = rf"(?i)^\s*{_QUESTION_WORD}\b[^\n?]{{20,300}}\?[ \t]*\n\s*(?:\n|answer)"
"""Pattern of a reply that asks a question on a line of its own, and then answers it."""

LABEL = r"^\s*(?:AI|Response|Assistant|Answer|Bot|Chatbot|ChatGPT|User|Human|System) ?: "
"""Pattern of a reply that begins with the label of a role or of a field, as "AI:" or "Response:"."""

CAPITAL_CODE = (
    (
        r"^\s*(?:```\w*\n)?(?:Function \w+ ?\(|Package [a-z]\w*;?\n|Import (?:[a-z][\w.]*[\n;]|[a-z]\w* as |[{*\"(])"
        r"|From [a-z][\w.]* import |Def \w+\(|(?:Const|Let|Var) \w+ =|Public (?:class|static|void) |#Include"
        r"|Using (?:System|namespace)|Class \w+[:({])"
    ),
    r"\bfor I (?:in|:=|=) |\(int I =|\bHttps?://",
)
"""Patterns of code whose first letter, or whose variable i, became a capital: case was restored as if it were prose."""

MERGED_LIST = (
    r"(?m)^[ \t]*(?:Step )?1[.:)] [^\n]+? (?:Step )?2[.:)] [^\n]+? (?:Step )?3[.:)] ",
    r"(?m)^[ \t]*- [^\n]+?[.!?] - [A-Z][^\n]+?[.!?] - [A-Z]",
)
"""Patterns of a list that begins on a line of its own and then has three items on that line."""

STOCK_OPENING = (
    r"(?i)^\W*(?:sure|certainly|absolutely|of course|yes,? (?:of course|certainly|absolutely)|definitely"
    r"|great question|no problem|I(?:'d| would) be (?:happy|glad))\b"
)
"""Pattern of a reply that begins with a formula of consent."""
STOCK_ENDING = (
    (
        r"(?i)(?:I hope (?:this|that|these)|hope (?:this|that|these) helps?|let me know"
        r"|feel free to (?:ask|reach out|contact)|hesitate to|any (?:other|more|further) (?:questions|concerns))\b"
        r"[^.!?\n]*[.!]?\s*$"
    ),
    r"\n(?:Overall|In conclusion|In summary|In short|Ultimately|All in all|To sum up)\b[^\n]*\s*$",
)
"""Patterns of a reply that ends with an offer of more help, or with a paragraph that sums up, as an essay does."""

_THANKS = (
    r"(?i)^\W*(?:ok(?:ay)?|thanks?|thank you|great|good|nice|cool|wow|awesome|perfect|amazing|interesting|got it"
    r"|sounds? (?:good|great)|that(?:'s| is) (?:great|good|amazing|helpful|awesome)|I'll|I will)\b"
)
_WISH = (
    r"(?i)\?|\b(?:(?:can|could|would|will) you|please|pls|tell me|give me|I(?:'d| would) (?:like|love)|write|add"
    r"|explain|describe|show|create|wondering|help|need|want)\b"
)
ITEM = r"^\s*(?:[-*•]\s*[^\s*-]|\(?\d{1,2}[.)]\s*\S|Step \d+\s*:)[^\n]*[^\s?]\s*$"
"""Pattern of a prompt that is one item of a list, such as "5. Garnish with a slice of lemon."."""
PASSAGE = (
    r"^(?:Given the text|Here is a piece of text|Read the passage below|Generate response to the question)\b"
    r"|\b(?:Answer|Generate) according to ?:|\b[Bb]ased on the (?:passage|text)(?: material)? above\b"
)
"""Pattern of a prompt that UltraChat made of a piece of text and an instruction."""

_BARE = 40
"""Maximum number of words of a reply that says nothing but that it has no feelings."""

PATTERNS = {
    "refusals": REFUSALS,
    "no_access": (NO_ACCESS,),
    "no_text": (NO_TEXT,),
    "ai_mentions": SELF_REFERENCES,
    "no_feelings": NO_FEELINGS,
    "own_questions": (OWN_QUESTION,),
    "labels": (LABEL,),
    "capital_code": CAPITAL_CODE,
    "stock_openings": (STOCK_OPENING,),
}
"""Signals that count replies, and the patterns of which one must be found."""
GATED = {
    "merged_lists": (r" 2[.:)] |[.!?] - [A-Z]", MERGED_LIST),
    "stock_endings": (
        (
            r"\n(?:Overall|In |Ultimately|All in all|To sum up)|ope th|et me know|eel free to|esitate to"
            r"|(?:er|re) (?:questions|concerns)"
        ),
        STOCK_ENDING,
    ),
}
"""The same, with a pattern that is cheap to search for and is found wherever one of them is."""


PHRASES = (*PATTERNS, *GATED, "bare_denials", "thanks_turns")
"""Signals that `phrases` finds."""

_LINK = r"(?i)\bhttps?://[^\s/()\[\]<>\"'`{}$]+/[^\s()\[\]<>\"'`,]{2,}"
_FENCED = r"(?s)```.*?(?:```|\z)"


def plain(texts: pl.Series) -> pl.Series:
    """Texts with straight apostrophes."""
    return texts.str.replace_all(_APOSTROPHE, "'", literal=True)


def phrases(turns: pl.DataFrame) -> dict[str, pl.Series]:
    """Whether each message is a reply with such a phrase, by signal; and `thanks_turns` of the user's.

    Columns of `turns`: `row`, `role`, `content`, `words`.
    """
    reply, user = turns["role"] == "assistant", (turns["role"] == "user") & (turns["row"] == turns["row"].shift(1))
    said = plain(turns["content"].filter(reply)).to_frame("said")
    found = said.select(**{name: _any(patterns) for name, patterns in PATTERNS.items()})
    signals = {column.name: _spread(column, reply) for column in found}
    signals |= {name: _spread(_gated(said, *pair), reply) for name, pair in GATED.items()}
    asked = plain(turns["content"].filter(user)).to_frame("said")
    some = asked["said"].str.contains(_THANKS)
    thankful = asked.filter(some).select(~_any((_WISH,))).to_series()
    return {
        **signals,
        "bare_denials": signals["no_feelings"] & (turns["words"] <= _BARE),
        "refusals": signals["refusals"] | signals["no_access"] | signals["no_text"],
        "thanks_turns": _spread(_spread(thankful, some), user),
    }


def _spread(answers: pl.Series, asked: pl.Series) -> pl.Series:
    """Answers for the messages that were asked about; false for the others."""
    return pl.repeat(value=False, n=len(asked), eager=True).scatter(asked.arg_true(), answers)


def _gated(said: pl.DataFrame, gate: str, patterns: tuple[str, ...]) -> pl.Series:
    """Whether one of the patterns is found in each text; slow patterns are searched for only where the gate is."""
    some = said["said"].str.contains(gate)
    return _spread(said.filter(some).select(_any(patterns)).to_series(), some)


def _any(patterns: tuple[str, ...]) -> pl.Expr:
    return pl.any_horizontal(*[pl.col("said").str.contains(pattern) for pattern in patterns])


def new_links(turns: pl.DataFrame) -> pl.Series:
    """Number of different addresses with a path in each reply, outside code fences, that only replies contain."""
    zeros = pl.repeat(0, len(turns), dtype=pl.Int64, eager=True)
    linked = turns["content"].str.contains("://", literal=True) & (turns["role"] == "assistant")
    if not linked.any():
        return zeros
    turns = turns.select("row", "role", "content").with_row_index("place")
    links = (
        turns.filter(linked)
        .select("row", "place", link=pl.col("content").str.replace_all(_FENCED, "").str.extract_all(_LINK))
        .explode("link", empty_as_null=False)
        .with_columns(pl.col("link").str.to_lowercase().str.strip_chars_end(".;:!?*/"))
        .filter(pl.col("link").str.contains(r"[{$]").not_())
        .unique()
    )
    given = turns.filter((pl.col("role") != "assistant") & pl.col("row").is_in(links["row"].unique().implode()))
    given = given.group_by("row").agg(pl.col("content").str.join("\n"))
    given_too = pl.col("content").str.to_lowercase().str.count_matches(pl.col("link"), literal=True)
    new = given_too.fill_null(0) == 0  # `contains` would compile a single link as a pattern, which has a size limit
    counts = links.join(given, on="row", how="left").filter(new).group_by("place").len()
    return zeros.scatter(counts["place"], counts["len"].cast(pl.Int64))
