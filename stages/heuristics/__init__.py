"""Heuristic signals: those of Gopher, C4 and FineWeb over the whole text, and those of conversations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from stages.heuristics.lines import LINE_SIGNALS, line_signals
from stages.heuristics.turns import CHAT_SIGNALS, chat_signals
from stages.heuristics.words import TEXT_SIGNALS, word_signals
from stages.stage import Axis, Stage
from stages.text.messages import call_texts


@dataclass(frozen=True)
class Heuristics(Stage):
    """Counts and shares that need no model.

    Shares are between 0 and 1, lengths are in characters. A line is a non-blank piece between newlines. A signal is
    null if there is no word, line, reply or prompt to measure. The thresholds named after the signals are those of the
    systems that they come from. They were made for web pages, and most of them do not fit chat.

    Words of the text (Gopher quality, https://arxiv.org/abs/2112.11446; numbers as in datatrove's filters):
        n_chars: characters of the text.
        n_words: words, punctuation excluded; a letter of a script without spaces (Han, kana, Thai, Lao,
            Khmer, Myanmar) is a word. Gopher: 50 to 100,000.
        mean_word_len: mean length of a word. Gopher: 3 to 10.
        alpha_words: share of white-space separated tokens that contain a letter. Gopher: at least 0.8.
        stop_words: number of distinct words of {the, be, to, of, and, that, have, with}. Gopher: at least 2.
        longest_token: length of the longest token. C4 drops lines with one over 1,000.
        hash_ratio, ellipsis_ratio: "#" per word; "..." and U+2026 per word. Gopher: at most 0.1.
        bullet_lines, ellipsis_lines: share of lines that begin with a bullet (Gopher: at most 0.9); that end with an
            ellipsis (at most 0.3).
    Repetition in the text (Gopher, A.1.1):
        dup_lines, dup_paras: share of lines, and of paragraphs, that occur earlier in the text. At most 0.3.
        dup_line_chars, dup_para_chars: share of characters in such lines, and in such paragraphs. At most 0.2.
        top_2gram, top_3gram, top_4gram: share of characters in the most frequent n-gram, if it occurs at least twice.
            At most 0.20, 0.18, 0.16.
        dup_5gram, dup_6gram, dup_7gram, dup_8gram, dup_9gram, dup_10gram: share of characters in n-grams that occur
            earlier in the text. At most 0.15, 0.14, 0.13, 0.12, 0.11, 0.10.
    Lines (FineWeb, https://arxiv.org/abs/2406.17557):
        n_lines: number of lines.
        punct_lines: share of lines that end with a terminal mark. FineWeb: at least 0.12.
        short_lines: share of lines of at most 30 characters. FineWeb: at most 0.67.
        fineweb_dup_chars: dup_line_chars as a share of the characters other than newlines. FineWeb: at most 0.01.
        newline_ratio: newlines per word. FineWeb: at most 0.3.
    Lines (C4, https://arxiv.org/abs/1910.10683; the last four drop code):
        no_punct_lines: share of lines that C4 removes because they end without a terminal mark or with an ellipsis.
        few_word_lines: share of lines of fewer than 3 words.
        long_lines: number of lines of at least 200 characters. mC4: at least 3.
        c4_lines, c4_sentences: share of lines that C4's line rules keep, and number of their sentences. C4: at least 5.
        policy_lines: share of lines with a phrase such as "privacy policy".
        lorem_ipsum: whether the text contains "lorem ipsum".
        curly_bracket: whether the text contains "{".
        javascript_lines: share of lines with the word "javascript".
    Turns (a turn is a message that is not a system message):
        n_turns, user_turns, assistant_turns: number of turns; of the user's messages; of the assistant's replies.
        has_system: whether there is a system message.
        alternates: whether no user message follows a user message and no reply follows a reply.
        first_role, last_role: role of the first turn, and of the last message.
        odd_roles: number of messages of a role other than user, assistant, system, tool, function, text.
        empty_turns, empty_replies: number of turns, and of replies, that are only white space. One with a tool call, an
            image or a file is not empty.
        empty_last: whether the last message is empty in this sense.
        truncated_last: whether the last message is a reply that stops in mid-sentence or inside a code fence.
        prompt_chars, prompt_words: characters, and white-space separated words, of the first prompt.
        prompt_item: whether the first prompt is a single item of a list, such as "5. Garnish with a slice of lemon."
        prompt_passage: whether it is a piece of text and an instruction, in one of UltraChat's templates.
        thanks_turns: number of later turns of the user that thank or praise, and ask for nothing.
        user_chars, assistant_chars: characters of all messages of the user, and of the assistant.
        max_turn_chars: characters of the longest message.
        bad_chars: number of control characters and U+FFFD.
    Replies (`first_` is the index of a reply, from 0):
        refusals, first_refusal: number of replies that decline or lack access, and the first of them.
        no_access: number of replies that begin with what they lack: "I do not have access to", "I'm unable to provide".
        no_text: number of replies that begin with the claim that the text that they are asked about is missing.
        ai_mentions, first_ai_mention: number of replies that mention being an AI model, and the first of them.
        no_feelings: number of replies that deny having emotions, opinions, preferences or a body (the first two:
            UltraChat 200k's dataset card).
        bare_denials: number of those replies that have at most 40 words.
        own_questions: number of replies that ask a question on a line of its own, and then answer it.
        labels: number of replies that begin with the label of a role or field, such as "AI:" or "Response:".
        lowered_names: number of names of the user's that one reply writes in lower case, of the reply with the most.
            Its sentences begin with capitals, it has none inside them, it has at least 10 words and ends with a mark.
            A name has a capital inside a sentence of the user, and is never without one.
        capital_code: number of replies in which code got a capital as if it were prose: "Def f(x):", "Https://".
        merged_lists: number of replies with a list on a line of its own whose items lost their line breaks.
        new_links: number of different web addresses with a path in replies, outside code, that only replies contain.
        stock_openings: number of replies that begin with "Certainly!", "Of course", "I'd be happy to" and the like.
        stock_endings: number of replies that end with an offer of more help, or with a paragraph like "Overall, ...".
        repeated_replies: number of replies of at least 5 words that repeat an earlier reply, ignoring case and
            punctuation.
        echoes: number of replies of at least 5 words that repeat the user's turn before them.
        self_overlap: share of the 5-grams of later replies that an earlier reply contains.
        user_overlap: share of the replies' 5-grams that an earlier turn of the user contains.
        reply_repetition: share of the replies' characters in 5-grams that occur earlier in the same reply.
    Code:
        code_share: share of characters in code fences and in lines that look like code.
        fenced_share: share of characters in code fences.
    Tools, reasoning, media. Signals of turns and replies see neither calls nor reasoning; `n_words` counts calls:
        tool_calls: number of messages that call a tool. Such a message is not empty.
        ends_in_call: whether the last message is a reply that calls a tool.
        media_parts: number of images, audio clips and files.
        reasoning_chars: characters of reasoning, in a field (`reasoning_content`, `thinking`) or in tags (`<think>`).
        reasoning_share: these as a share of the characters of reasoning and replies; null without reasoning.
        reasoning_repetition: share of these characters in 5-grams that occur earlier in the same reasoning.
    """

    summary: ClassVar[str] = "words, lines, repetition (Gopher, C4, FineWeb); turns, roles, refusals, truncation, code"
    version: ClassVar[int] = 3
    reads: ClassVar[tuple[str, ...]] = ("text", "messages", "prompt", "details")
    writes: ClassVar[pl.Schema] = pl.Schema({**TEXT_SIGNALS, **LINE_SIGNALS, **CHAT_SIGNALS})
    axes: ClassVar[Mapping[str, Axis]] = {
        "n_words": Axis("words", log=True, rank=40),
        "n_turns": Axis("turns", log=True, rank=50),
        "prompt_words": Axis("words in the first prompt", log=True, rank=60),
        "assistant_chars": Axis("characters in the replies", log=True, rank=70),
        "reply_repetition": Axis("share of replies repeated within a reply", rank=80),
        "alpha_words": Axis("share of words with a letter", rank=120),
        "dup_lines": Axis("share of lines seen before", rank=130),
        "code_share": Axis("share of characters in code", rank=140),
        "refusals": Axis("replies that decline", rank=160),
        "mean_word_len": Axis("characters per word", rank=170),
        "user_chars": Axis("characters in the user's turns", log=True, rank=180),
        "user_turns": Axis("user messages", log=True, rank=240),
        "assistant_turns": Axis("replies", log=True, rank=250),
        "empty_replies": Axis("blank replies", rank=260),
        "no_feelings": Axis("replies that deny feelings", rank=270),
        "truncated_last": Axis("last reply cut off (0 or 1)", rank=280),
    }

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        text = batch["text"].fill_null("")
        words = word_signals(text)
        lines, chat = line_signals(text, words), chat_signals(batch)
        if (calls := call_texts(batch)) is not None:
            words = words.with_columns(n_words=words["n_words"] + word_signals(calls)["n_words"])
        return pl.concat([words, lines, chat], how="horizontal")
