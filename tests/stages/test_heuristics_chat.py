"""Signals of turns, roles and replies equal those of a plain loop over messages."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from stages.heuristics import Heuristics
from stages.stage import MESSAGES
from tests.stages.test_heuristics_reference import reference_words

Message = tuple[str, str]


def batch(*conversations: list[Message]) -> pl.DataFrame:
    rows = [[{"role": role, "content": content} for role, content in messages] for messages in conversations]
    texts = ["\n".join(content for _, content in messages) for messages in conversations]
    prompts = [next((content for role, content in messages if role == "user"), "") for messages in conversations]
    schema = {"messages": MESSAGES, "text": pl.String(), "prompt": pl.String()}
    return pl.DataFrame({"messages": rows, "text": texts, "prompt": prompts}, schema=schema)


def measure(*conversations: list[Message]) -> list[dict[str, Any]]:
    return Heuristics().measure(batch(*conversations)).to_dicts()


def reply(content: str) -> dict[str, Any]:
    return measure([("user", "Tell me about it."), ("assistant", content)])[0]


def fivegrams(content: str) -> list[tuple[str, ...]]:
    words = reference_words(content)
    return [tuple(words[i : i + 5]) for i in range(len(words) - 4)]


def bare(content: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", content.lower()))


def reference(messages: list[Message]) -> dict[str, Any]:
    """The counts of turns and roles and the overlaps, message by message."""
    turns = [(role, content) for role, content in messages if role != "system"]
    replies = [content for role, content in messages if role == "assistant"]
    blank = [not content.strip() for _, content in messages]
    seen: dict[str, set[tuple[str, ...]]] = {"user": set(), "assistant": set()}
    grams = repeated = later = from_user = inside = 0
    known: set[str] = set()
    copies = 0
    for role, content in messages:
        own = fivegrams(content)
        if role == "assistant":
            repeated += sum(gram in seen["assistant"] for gram in own)
            from_user += sum(gram in seen["user"] for gram in own)
            later += len(own) if grams else 0
            grams += len(own)
            inside += repeated_characters(own)
            copies += len(bare(content).split()) >= 5 and bare(content) in known
            known.add(bare(content))
        if role in seen:
            seen[role] |= set(own)
    characters = sum(map(len, replies))
    return {
        "n_turns": len(turns),
        "user_turns": sum(role == "user" for role, _ in turns),
        "assistant_turns": len(replies),
        "has_system": len(turns) < len(messages) if messages else None,
        "alternates": not any(a == b and a in {"user", "assistant"} for (a, _), (b, _) in pairwise(messages))
        if messages
        else None,
        "first_role": turns[0][0] if turns else None,
        "last_role": messages[-1][0] if messages else None,
        "odd_roles": sum(role == "narrator" for role, _ in messages),
        "empty_turns": sum(not content.strip() for _, content in turns),
        "empty_replies": sum(not content.strip() for content in replies),
        "empty_last": blank[-1] if messages else None,
        "user_chars": sum(len(content) for role, content in messages if role == "user"),
        "assistant_chars": characters,
        "max_turn_chars": max((len(content) for _, content in messages), default=0),
        "repeated_replies": copies,
        "self_overlap": repeated / later if later else None,
        "user_overlap": from_user / grams if grams else None,
        "reply_repetition": inside / characters if grams else None,
    }


def repeated_characters(grams: list[tuple[str, ...]]) -> int:
    seen: set[tuple[str, ...]] = set()
    i = characters = 0
    while i < len(grams):
        if grams[i] in seen:
            characters += sum(map(len, grams[i]))
            i += 5
        else:
            seen.add(grams[i])
            i += 1
    return characters


CONTENT = st.lists(
    st.sampled_from(["a", "b", "yes", "no", "sure", "the", "日本", "...", "\n", "don't", ""]), max_size=30
).map(" ".join)
MESSAGE = st.tuples(st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool", "narrator"]), CONTENT)
CONVERSATION = st.lists(MESSAGE, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(CONVERSATION, min_size=1, max_size=4))
def test_turns_and_overlaps_equal_the_reference(conversations: list[list[Message]]) -> None:
    """Counts of turns and roles, and the shares of repeated 5-grams, equal those of a plain loop over the messages."""
    for messages, found in zip(conversations, measure(*conversations), strict=True):
        for name, value in reference(messages).items():
            assert found[name] == pytest.approx(value), (name, messages)


@settings(max_examples=30, deadline=None)
@given(st.lists(CONVERSATION, max_size=6), st.integers(0, 6))
def test_parts_and_whole_give_the_same(conversations: list[list[Message]], cut: int) -> None:
    """Measuring the parts of a batch and concatenating equals measuring the whole: as many rows, in the same order."""
    whole = batch(*conversations)
    parts = pl.concat([Heuristics().measure(whole[:cut]), Heuristics().measure(whole[cut:])])
    measured = Heuristics().measure(whole)
    assert measured.schema == Heuristics.writes
    assert_frame_equal(measured, parts)


def test_hostile_text_does_no_harm() -> None:
    """Empty, 1 MB, right-to-left, NUL, U+FFFD and marker-like texts are measured, with no NaN anywhere."""
    texts = [
        "",
        " ",
        "\x00" * 9,
        "\ufffd" * 9,
        "مرحبا " * 9,
        "a" * 1_000_000,
        "x y " * 250_000,
        "```" * 99_999,
        "(" * 99_999,
    ]
    conversations: list[list[Message]] = [[("user", text), ("assistant", text)] for text in texts]
    measured = Heuristics().measure(batch([], *conversations, [("", ""), ("user", "")]))
    assert measured.height == len(texts) + 2
    floats = measured.select(pl.col(pl.Float64))
    assert not floats.select(pl.any_horizontal(pl.all().is_nan().fill_null(value=False)).any()).item()
    assert measured["bad_chars"].to_list()[3:5] == [18, 18]


def test_a_batch_of_no_rows_has_the_columns() -> None:
    """No conversations give no rows, in the promised schema."""
    measured = Heuristics().measure(batch())
    assert (measured.height, measured.schema) == (0, Heuristics.writes)


@pytest.mark.parametrize(
    "content",
    [
        "I'm sorry, but I can't help with that request.",
        "I’m sorry, I cannot assist you in doing harm to others.",  # noqa: RUF001 - the typographic apostrophe is meant
        "I cannot fulfill this request.",
        "As an AI language model, I cannot provide medical advice.",
        "Sorry, I'm not able to give out private addresses.",
    ],
)
def test_a_refusal_is_seen(content: str) -> None:
    """A reply that declines is counted and located."""
    measured = measure([("user", "Hi"), ("assistant", "Hello!"), ("user", "Do it"), ("assistant", content)])[0]
    assert (measured["refusals"], measured["first_refusal"]) == (1, 1)


@pytest.mark.parametrize(
    "content",
    [
        "I'm sorry, I could not find a table for two at seven.",
        "Sorry, I was unable to make the reservation. Anything else?",
        "I can't wait to hear how it went!",
        "I am sorry that is the only concert on that date.",
        "She said: you cannot help yourself.",
        "If you cannot provide a receipt, the shop may refuse to help.",
    ],
)
def test_an_apology_or_a_bare_cannot_is_no_refusal(content: str) -> None:
    """Words of refusal that decline nothing are not counted."""
    assert (reply(content)["refusals"], reply(content)["first_refusal"]) == (0, None)


def test_the_users_words_are_not_the_assistants() -> None:
    """Only replies count as refusals and self-references, not what the user writes."""
    measured = measure([("user", "As an AI language model, I cannot provide opinions."), ("assistant", "Nice try.")])[0]
    assert (measured["refusals"], measured["ai_mentions"], measured["no_feelings"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "mentions", "feelings"),
    [
        ("As an AI language model, I think green is fine.", 1, 0),
        ("I'm just an AI assistant. I do not have emotions.", 1, 1),
        ("I don't have personal opinions.", 0, 1),
        ("I don't have feelings or opinions about that.", 0, 1),
        ("AI is a field of study; I like it as a subject.", 0, 0),
        ("She does not have emotions, and I do not have a car.", 0, 0),
    ],
)
def test_self_reference_is_seen(content: str, mentions: int, feelings: int) -> None:
    """A reply that mentions being a model, or denies feelings (UltraChat 200k's rule), is counted."""
    assert (reply(content)["ai_mentions"], reply(content)["no_feelings"]) == (mentions, feelings)


@pytest.mark.parametrize(
    ("signal", "content"),
    [
        ("no_access", "I do not have access to real-time information. However, you can ask the shop."),
        ("no_access", "I'm sorry, but I don't have specific details about the price."),
        ("no_access", "As an AI language model, I am unable to provide recommendations."),
        ("no_text", "I don't have access to the specific text you are referring to."),
        ("no_text", "I would need the text material to summarize it."),
        ("no_feelings", "As an AI, I do not have personal preferences."),
        ("no_feelings", "I don't have a physical body, but here is how to ride a bike."),
        ("bare_denials", "I'm sorry, I don't have personal opinions."),
        ("own_questions", "What is the pogo ball and how is it used?\n\nThe pogo ball is a toy."),
        ("own_questions", "Who played the spokesman of the White House?\nAnswer: It was Sean."),
        ("labels", "AI: Yes, it was directed by Matthew."),
        ("labels", "Response: The event will be in May."),
        ("capital_code", "Def find(array):\n    return max(array)"),
        ("capital_code", "Package main\n\nfunc main() {}"),
        ("capital_code", "Here it is:\n```\nfor I in range(3):\n    print(i)\n```"),
        ("capital_code", "You find it here: Https://example.org/shoes"),
        ("merged_lists", "Here is how:\n\n1. Rinse it. 2. Cut it. 3. Fry it."),
        ("merged_lists", "Step 1: Rinse it. Step 2: Cut it. Step 3: Fry it."),
        ("merged_lists", "For fish:\n- Use dill. - Use lemon. - Use salt."),
        ("new_links", "Look here: https://www.example.org/watch?v=9iX9. It is fun."),
        ("stock_openings", "Certainly! Here are three."),
        ("stock_openings", "I'd be happy to help."),
        ("stock_endings", "It is blue. I hope this helps! Let me know if you have any more questions."),
        ("stock_endings", "It is blue.\n\nOverall, the sky is blue, and the sea is blue because of it."),
        ("stock_endings", "It is blue. If you have any more questions, ask me."),
    ],
)
def test_a_fault_of_a_reply_is_counted(signal: str, content: str) -> None:
    """Once per reply, and with a typographic apostrophe as with a straight one."""
    assert (reply(content)[signal], reply(content.replace("'", "’"))[signal]) == (1, 1)  # noqa: RUF001 - it is meant
    assert measure([("user", content), ("assistant", "Fine.")])[0][signal] == 0


@pytest.mark.parametrize(
    ("signal", "content"),
    [
        ("no_access", "The text does not say it, and I do not have the time to look."),
        ("no_access", "I don't have enough money to have access."),
        ("no_access", "Sorry, I am unable to make an appointment at that time."),
        ("no_access", "I can't find a mocha, would you like something else?"),
        ("no_text", "You need the text to do that."),
        ("no_feelings", "I don't have strong feelings about that."),
        ("no_feelings", "I don't have an opinion on that."),
        ("bare_denials", "I do not have personal preferences. However, " + "this one is liked by many people. " * 8),
        ("own_questions", "Are you tired of old shoes?\n\nBuy ours!"),
        ("own_questions", "What a day! Who would have thought that it rains?"),
        ("own_questions", "How about this one?\n\nRoses are red."),
        ("labels", "Response times are short: two seconds."),
        ("labels", "Answers: see below."),
        ("capital_code", "Function words are short (as a rule)."),
        ("capital_code", "Import duties rose. From here on, we import less."),
        ("capital_code", "def find(array):\n    for i in array:\n        print(i)  # https://example.org"),
        ("merged_lists", "Three ideas: 1. Rinse it. 2. Cut it. 3. Fry it."),
        ("merged_lists", "1. Rinse it.\n2. Cut it.\n3. Fry it."),
        ("merged_lists", "1. Rinse 2. Cut"),
        ("new_links", "See www.example.org or https://example.org for it."),
        ("new_links", "Call it:\n```\nget('https://api.example.org/data')\n```"),
        ("new_links", "Call https://api.example.org/users/{name} for it."),
        ("stock_openings", "Surely not."),
        ("stock_endings", "I hope that you come. The door is open."),
        ("stock_endings", "Overall, it is blue.\n\nAnd wide."),
    ],
)
def test_what_only_looks_like_a_fault_is_not_counted(signal: str, content: str) -> None:
    """Service, lists within a sentence, code in fences, advertisements."""
    assert reply(content)[signal] == 0


def test_lacking_access_is_a_refusal() -> None:
    """A rule on `refusals` also sees replies that only say what they lack."""
    measured = measure([("user", "Hi"), ("assistant", "Hello!"), ("assistant", "I do not have access to that.")])[0]
    assert (measured["refusals"], measured["first_refusal"], measured["no_access"]) == (1, 1, 1)


def test_a_denial_is_bare_up_to_forty_words() -> None:
    """At 40 words nothing else is said; with one more there may be an answer."""
    denial = "I do not have personal opinions."  # 6 words
    assert [reply(denial + " so" * more)["bare_denials"] for more in (34, 35)] == [1, 0]


def test_an_address_that_a_user_gave_is_not_new() -> None:
    """Nor is one of the system; the same one twice in a reply is one."""
    link = "https://example.org/a/b"
    given = [("user", f"What is {link}?"), ("assistant", f"{link.upper()} is a page.")]
    system = [("system", f"Use {link}"), ("user", "Where?"), ("assistant", f"At {link}.")]
    twice = [("user", "Where?"), ("assistant", f"At {link}, yes, {link}."), ("user", link)]
    again = [("user", "Where?"), ("assistant", f"At {link} or {link}/c."), ("assistant", link)]
    assert [row["new_links"] for row in measure(given, system, twice, again)] == [0, 0, 0, 3]


def test_an_address_may_be_long() -> None:
    """As one with data in it; alone in a batch it was compiled as a pattern, which failed."""
    said = [("user", "Where?"), ("assistant", f"At https://example.org/{'a' * 400_000}.")]
    assert [row["new_links"] for row in measure(said)] == [1]


@pytest.mark.parametrize(
    ("prompt", "item", "passage"),
    [
        ("5. Garnish with a slice of lemon.", True, False),
        ("- 1/4 cup red wine vinegar", True, False),
        ("-4 cloves of garlic", True, False),
        ("1. What do I need?", False, False),
        ("1. Rinse it.\n2. Cut it.\nWhat is next?", False, False),
        ("--- what is this", False, False),
        ("1984 is a novel.", False, False),
        ("What is it? Answer according to: The shop sells hats.", False, True),
        ("Given the text: The shop sells hats.\nWhat is it?", False, True),
        ("The shop sells hats. Based on the passage above, what is it?", False, True),
        ("Is it given the text of a poem?", False, False),
    ],
)
def test_prompts_that_no_user_writes(prompt: str, item: bool, passage: bool) -> None:
    """An item of a list; a piece of text and an instruction."""
    measured = measure([("user", prompt), ("assistant", "Fine.")])[0]
    assert (measured["prompt_item"], measured["prompt_passage"]) == (item, passage)


def test_turns_that_only_thank_are_counted() -> None:
    """Not the first turn, not with a question or a wish, and not those of the assistant."""
    said = ["Thanks!", "Wow, that is great.", "Great, now add salt.", "Thanks, what next?", "I'll try it.", "Add salt."]
    turns = [turn for content in said for turn in (("user", content), ("assistant", "Thank you."))]
    assert measure(turns)[0]["thanks_turns"] == 2


def names_in_lower_case(messages: list[Message]) -> int:
    """`lowered_names` by the words of a regular expression."""

    def words(text: str) -> list[tuple[str, bool]]:
        found = list(re.finditer(r"[^\W_]+", text))
        ends = [None, *(word.end() for word in found)]
        return [
            (w[0], end is not None and text[end : w.start()] in {" ", ", "})
            for w, end in zip(found, ends, strict=False)
        ]

    capital: set[str] = set()
    small: set[str] = set()
    for line in (line for role, content in messages if role != "assistant" for line in content.split("\n")):
        initials = [word[0] != word[0].lower() for word, _ in words(line)]
        for (word, inside), initial in zip(words(line), initials, strict=True):
            if len(word) >= 3 and (not initial or (inside and 2 * sum(initials) <= len(initials))):
                (capital if initial else small).add(word.lower())
    counts = [0]
    for content in (content for role, content in messages if role == "assistant"):
        said = words(content)
        within = any(inside and len(word) > 1 and word[0] != word[0].lower() for word, inside in said)
        marked = not content.rstrip()[-1:].isalnum()
        if len(said) >= 10 and marked and not within and content != content.lower():
            counts.append(len({word for word, _ in said if word == word.lower()} & (capital - small)))
    return max(counts)


WORDS = (
    "Anna",
    "anna",
    "Ulm",
    "ulm",
    "Él",
    "él",
    "the",
    "The",
    "in",
    "I",
    "ß",
    "x",
    "中文",
    "7up",
    "é",
    "The Old House",
)
NAMING = st.lists(st.sampled_from([*WORDS, ",", ".", "\n"]), min_size=1, max_size=40).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), NAMING), max_size=5), max_size=3))
def test_names_in_lower_case_equal_those_of_a_plain_loop(conversations: list[list[Message]]) -> None:
    """Letters beyond ASCII, titles, lines, and names that the user also writes without a capital included."""
    found = [row["lowered_names"] for row in measure(*conversations)]
    assert found == [names_in_lower_case(messages) for messages in conversations]


def test_names_in_lower_case_are_seen() -> None:
    """As UltraChat has them; not with a capital inside a sentence, without any, without a last mark, in few words."""
    asked = "How many tickets for the Botafogo match does Maria Prestes sell in Rio?"
    lost = "I do not have access to it. However, botafogo and maria prestes sell them."
    prose = [lost, lost.replace("maria", "Maria"), lost.lower(), lost.rstrip("."), "Botafogo sells."]
    found = [row["lowered_names"] for row in measure(*([("user", asked), ("assistant", said)] for said in prose))]
    assert found == [3, 0, 0, 0, 0]


PARAGRAPH = "This is a line of prose that is well over eight words long and ends well.\n"


@pytest.mark.parametrize(
    "content",
    [
        "Maybe you could talk to them about the",
        "There are many reasons for this, and",
        "I would not do that to a friend. If you break the window, your mother will know that it is",
        "Here you are:\n```python\nwith open('x') as f:\n    words = [",
        PARAGRAPH * 8 + "The last line goes on like the others for a while and then it stops without any",
    ],
)
def test_a_reply_cut_off_is_seen(content: str) -> None:
    """A reply that ends on "the" or "and", in an open fence, or as the one unmarked line of many, is truncated."""
    assert reply(content)["truncated_last"] is True


@pytest.mark.parametrize(
    "content",
    [
        "Paris",
        "42",
        "That is all there is to say.",
        "Vielen Dank und bis bald!",
        "これで終わりです。",
        "هذا كل شيء؟",
        "Here you are:\n```sql\nSELECT * FROM users WHERE age > 30;\n```",
        "SELECT name, age FROM users WHERE city = 'Rome' ORDER BY age DESC;",
        "- buy milk\n- feed the cat that lives in the house next door and\n- 3. sleep",
        "You can read all about it on their page: https://example.org/a/b/c",
        "Roses are red in the early morning light\n" * 20,
        "Kind regards,\nThe whole team of the little shop around the corner",
        "sure thing lets do that tomorrow then im free all day",
        "He said: “That is all there is.”",
        "do what you want to",
        "A block of code begins with ``` at the start of a line, and ends likewise.",
        "Well. I have to go now, it was a fine evening and I hope that you had somebody to chat with",
        PARAGRAPH * 8 + "Read more at the page of the society for the old trees of the town #trees",
    ],
)
def test_a_finished_reply_is_not_truncated(content: str) -> None:
    """Code, lists, addresses, verse, other scripts' end marks, and writers who use no marks are not counted."""
    assert reply(content)["truncated_last"] is False


def test_truncation_is_unknown_without_a_last_reply() -> None:
    """If the last message is the user's, or empty, the signal is null."""
    found = measure([("user", "and the")], [("user", "Hi"), ("assistant", " ")], [])
    assert [row["truncated_last"] for row in found] == [None, None, None]


def test_an_echo_is_seen() -> None:
    """A reply that equals the user's turn, ignoring case and punctuation, is an echo; a short one is not."""
    long = [("user", "What is the best way to go?"), ("assistant", "what is the best way to go")]
    short = [("user", "Hello there!"), ("assistant", "Hello there")]
    assert [row["echoes"] for row in measure(long, short)] == [1, 0]


def test_code_is_measured_fenced_and_plain() -> None:
    """Fenced code counts in both shares, code without a fence in one, prose in none."""
    fenced, plain, prose = measure(
        [("assistant", "```python\nprint(1)\n```")],
        [("assistant", "import os\nfor x in range(3):\n    print(x)")],
        [("assistant", "I like the sea. It is blue, and wide.")],
    )
    assert (fenced["code_share"], fenced["fenced_share"]) == (1.0, 1.0)
    assert (plain["code_share"] > 0.9, plain["fenced_share"]) == (True, 0.0)
    assert (prose["code_share"], prose["fenced_share"]) == (0.0, 0.0)


def test_the_same_parameters_give_the_same_identity() -> None:
    """Two stages of the same parameters name the same measurement."""
    assert Heuristics().digest() == Heuristics().digest()


def test_every_signal_is_documented() -> None:
    """The docstring, which users read for names to type in rules, names every signal."""
    documented = re.sub(
        r"dup_5gram \.\.\. dup_10gram", ", ".join(f"dup_{n}gram" for n in range(5, 11)), Heuristics.__doc__ or ""
    )
    names = set(re.findall(r"\w+", documented))
    assert set(Heuristics.writes) <= names
