"""Conversations as hypothesis draws them: ordinary, odd and hostile."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from hypothesis import strategies as st

from stages.stage import RAW

ODD = [
    "",
    " ",
    "\n\n\n",
    "\0",
    "\ufffd\ufffd",
    "!!! ??? ...",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "\u202eright to left\u202c",
    "今天天气很好。我们去公园吧!",
    "e\u0301a\u0308 I\u0307 \u0130stanbul ß ﬁ ǅ",
    "👩‍👩‍👧‍👦 🇯🇵 \U0010ffff \ue000",
    "\u200b\u200d\u2028\u2029\x85\x1c",
    "```python\nprint('<script>alert(1)</script>')\n```",
    "\x1b[31mred\x1b[0m",
    "As an AI language model, I cannot do that.",
    "a" * 5000,
    "word " * 3000,
    "{}" * 500,
    "1234567890 " * 20,
    "' OR 1=1; -- $(rm -rf /) `id`",
]
"""Texts that have broken a tool of the field at some time."""

words = st.sampled_from(["the", "river", "runs", "under", "a", "stone", "bridge", "Hello", "please", "no", "42", "x_1"])
sentences = st.lists(words, min_size=1, max_size=12).map(lambda said: " ".join(said).capitalize() + ".")
texts = st.one_of(
    sentences,
    st.lists(sentences, min_size=2, max_size=6).map("\n".join),
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8"), max_size=80),
)
roles = st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool", "text"])
messages = st.fixed_dictionaries({"role": roles, "content": texts})
conversations = st.lists(messages, max_size=6)
corpora = st.lists(conversations, min_size=1, max_size=12)


def raw(made: Sequence[Sequence[dict[str, str]]], begin: int = 0) -> pl.DataFrame:
    """Conversations as a raw shard, numbered from `begin`."""
    rows = []
    for i, said in enumerate(made, begin):
        prompt = next((m["content"] for m in said if m["role"] == "user"), "")
        text = "\n".join(m["content"] for m in said)
        rows.append((f"test-{i:09d}", None, prompt, f"p{i}", list(said), text, "test", None, None, None))
    return pl.DataFrame(rows, schema=RAW, orient="row")
