"""Heuristic signals: Gopher, C4 and FineWeb over the whole text, and what only a conversation has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from stages.heuristics.lines import LINE_SIGNALS, line_signals
from stages.heuristics.turns import CHAT_SIGNALS, chat_signals
from stages.heuristics.words import TEXT_SIGNALS, word_signals
from stages.stage import Axis, Stage


@dataclass(frozen=True)
class Heuristics(Stage):
    """Counts and shares that need no model.

    Shares are between 0 and 1, lengths in characters. A line is a piece between newlines that is not blank. Null: no
    word, line, reply or prompt to measure. The systems' thresholds stand behind the signals; they were made for web
    pages, and most of them do not fit chat.

    Words of the text (Gopher quality, https://arxiv.org/abs/2112.11446; numbers as datatrove's filters):
        n_chars: characters of the text.
        n_words: words; punctuation is none, a Han, kana or Thai letter is one. Gopher: 50 to 100,000.
        mean_word_len: mean length of a word. Gopher: 3 to 10.
        alpha_words: share of tokens between white space with a letter. Gopher: at least 0.8.
        stop_words: distinct words of {the, be, to, of, and, that, have, with}. Gopher: at least 2.
        longest_token: longest piece between white space. C4: lines with one over 1,000 go.
        hash_ratio, ellipsis_ratio: "#", or "..." and U+2026, a word. Gopher: at most 0.1.
        bullet_lines, ellipsis_lines: share of lines that begin with a bullet (Gopher: at most 0.9), that end with an
            ellipsis (at most 0.3).
    Repetition in the text (Gopher, A.1.1):
        dup_lines, dup_paras: share of lines, of paragraphs, seen before in the text. At most 0.3.
        dup_line_chars, dup_para_chars: characters in them a character of the text. At most 0.2.
        top_2gram, top_3gram, top_4gram: characters in the most frequent n-gram that stands twice or more. At most
            0.20, 0.18, 0.16.
        dup_5gram, dup_6gram, dup_7gram, dup_8gram, dup_9gram, dup_10gram: characters in n-grams seen before. At most
            0.15, 0.14, 0.13, 0.12, 0.11, 0.10.
    Lines (FineWeb, https://arxiv.org/abs/2406.17557):
        n_lines: lines.
        punct_lines: share that ends with a terminal mark. FineWeb: at least 0.12.
        short_lines: share of 30 characters or less. FineWeb: at most 0.67.
        fineweb_dup_chars: as dup_line_chars, newlines not counted below. FineWeb: at most 0.01.
        newline_ratio: newlines a word. FineWeb: at most 0.3.
    Lines (C4, https://arxiv.org/abs/1910.10683; the last four are hostile to code):
        no_punct_lines: share that C4 removes: no terminal mark at the end, or an ellipsis.
        few_word_lines: share with fewer than 3 words.
        long_lines: number of lines of 200 characters or more. mC4: at least 3.
        c4_lines, c4_sentences: share of lines that C4's line rules keep, and sentences in them. C4: at least 5.
        policy_lines: share with a phrase such as "privacy policy".
        lorem_ipsum: the text contains "lorem ipsum".
        curly_bracket: the text contains "{".
        javascript_lines: share with the word "javascript".
    Turns (a turn is a message that is not the system's):
        n_turns, user_turns, assistant_turns: messages of anyone but the system, of the user, of the assistant.
        has_system: there is a system message.
        alternates: no user message follows the user's, no reply the assistant's.
        first_role, last_role: role of the first turn, of the last message.
        odd_roles: messages of another role than user, assistant, system, tool, function.
        empty_turns, empty_replies: turns, and replies, of nothing but white space.
        empty_last: the last message is one.
        truncated_last: the last message is a reply and stops in mid-sentence or inside a code fence.
        prompt_chars, prompt_words: characters and words (between white space) of the first prompt.
        user_chars, assistant_chars: characters of all their turns.
        max_turn_chars: characters of the longest message.
        bad_chars: control characters and U+FFFD.
    Replies (`first_` counts replies from 0):
        refusals, first_refusal: replies that decline, and which is the first.
        ai_mentions, first_ai_mention: replies that speak of themselves as a model, and which is the first.
        no_feelings: replies that deny having emotions or opinions (UltraChat 200k's own refinement, dataset card).
        repeated_replies: replies of 5 words or more that equal an earlier one, but for case and punctuation.
        echoes: replies of 5 words or more that equal the user's turn before them.
        self_overlap: share of the 5-grams of later replies that an earlier reply had.
        user_overlap: share of the replies' 5-grams that an earlier turn of the user had.
        reply_repetition: characters of replies in 5-grams that the same reply had before, a character of all replies.
    Code:
        code_share: characters in fences and in lines that look like code.
        fenced_share: characters in fences.
    """

    summary: ClassVar[str] = "words, lines, repetition (Gopher, C4, FineWeb); turns, roles, refusals, truncation, code"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages", "prompt")
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
        """Signals of a batch; see the class."""
        if batch.is_empty():
            return pl.DataFrame(schema=self.writes)
        text = batch["text"].fill_null("")
        words = word_signals(text)
        chat = chat_signals(batch["messages"], batch["prompt"])
        return pl.concat([words, line_signals(text, words), chat], how="horizontal")
