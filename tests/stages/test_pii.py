"""Personal data: what is found, what is not, and whose it is."""

from __future__ import annotations

import polars as pl
import pytest

from stages.pii import Pii
from stages.pii.find import KINDS, SCREEN, spans
from stages.pii.redact import Redaction
from stages.stage import StageParameterError
from tests import strategies
from tests.conftest import SHARED

AWS, GITHUB = "AKIA" + "QX7TRBLW3EKJ5ZNH", "ghp_" + "aB3dE5fG7hJ9kL2mN4pQ6rS8tU1vW3xY5zA7"  # of no account


ITEMS = {
    "write to jane.doe+news@mail.acme.co.uk.": "write to <EMAIL>.",
    "[me](mailto:jane@acme.org)": "[me](mailto:<EMAIL>)",
    "call +44 20 7946 0958 or (212) 736-5000": "call <PHONE> or <PHONE>",
    "Phone: 06 12 34 56 78": "Phone: <PHONE>",
    "030 1234567 (fax)": "<PHONE> (fax)",
    "212-736-5000 ext. 12, please": "<PHONE>, please",
    "from 81.2.69.160 to 2a02:6b8::2:242": "from <IP> to <IP>",
    "4111 1111 1111 1111 and 378282246310005": "<CARD> and <CARD>",
    "my card 6331101999990016": "my card <CARD>",
    "GB82 WEST 1234 5698 7654 32 to him": "<IBAN> to him",
    "DE89370400440532013000": "<IBAN>",
    f"key={AWS}": "key=<KEY>",
    f"{GITHUB}\n": "<KEY>\n",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----": "<KEY>",
}
"""Texts with personal data, and what they are without it."""


def kinds(text: str) -> list[str]:
    """Kinds of the spans of a text, in order."""
    return [span.kind for span in spans(text, ("US", "GB"))]


@pytest.mark.parametrize(("text", "redacted"), ITEMS.items())
def test_each_kind_is_found_to_its_exact_ends(text: str, redacted: str) -> None:
    """The placeholder takes the place of the item, and of nothing else."""
    assert Redaction(tuple(KINDS), ("US", "GB")).text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "ISBN 978-3-16-148410-0 and ISBN-10: 0-306-40615-2",
        "version 10.2.3.4, v1.22.333.4444 and 192.168.0.1 or 127.0.0.1",
        "a.b.c.d = 1.5.2.3.4",
        "std::vector<int>::iterator at 10:20:30 or a::b",
        "@app.route and logo@2x.png",
        "admin@example.com, root@localhost, joe@mail.test",
        "3.14159265358979, 1234567890 and 4111111111111112",
        "from 1914-1918 to 2023-11-02, or 02/11/2023",
        "1,000,000 - 2,000,000 and 12 345 678",
        "(555) 0000000",
        "GB82 WEST 1234 5698 7654 33",
        "AKIAIOSFODNN7EXAMPLE and sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx and YOUR_API_KEY",
        "SELECT 100200300 * 4",
        "commit 4f9d2c1b8a7e6d5c4b3a29181716151413121110",
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(text: str) -> None:
    """Books, versions, code, sums, dates, reserved addresses, wrong check digits and placeholders."""
    assert kinds(text) == []


def test_a_phone_number_without_prefix_needs_a_region_or_a_word() -> None:
    """The same digits are a phone number where its country is asked for, or where the text says so."""
    assert spans("030 901820", ("US",)) == []
    assert [span.kind for span in spans("my phone is 030 901820", ("US",))] == ["phone"]
    assert [span.kind for span in spans("030 901820", ("DE",))] == ["phone"]


def test_items_count_by_kind_and_by_role() -> None:
    """Each occurrence counts; other roles count in the total only; a conversation without any has zeros."""
    said = [
        {"role": "user", "content": "I am jane@acme.org, again jane@acme.org"},
        {"role": "assistant", "content": "Calling (212) 736-5000"},
        {"role": "tool", "content": "81.2.69.160"},
    ]
    signals = Pii().measure(strategies.raw([said, said[:0]]).select(Pii.reads))
    assert signals.schema == Pii.writes
    found = {name: n for name, n in signals.row(0, named=True).items() if n}
    assert found == {"pii": 4, "pii_email": 2, "pii_phone": 1, "pii_ip": 1, "pii_user": 2, "pii_assistant": 1}
    assert set(signals.row(1)) == {0}


def test_text_at_any_depth_is_redacted_and_counted() -> None:
    """In messages, in JSON inside a text, which stays JSON, and in nested fields; other rows stay as they are."""
    said = {"role": "user", "content": "I am jane@acme.org", "calls": [{"arguments": '{"to": "(212) 736-5000"}'}]}
    frame = pl.DataFrame(
        {
            "messages": [[said], [{**said, "content": "nothing", "calls": []}], None],
            "extra": ['{"mail": "jane@acme.org", "n": 1, "é": "é"}', '{"n":  1}', None],
        }
    )
    redacted, items = Redaction(("email", "phone"), ("US",)).frame(frame, ["messages", "extra"])
    assert redacted.schema == frame.schema
    assert items.to_list() == [3, 0, 0]
    first = redacted.row(0, named=True)
    assert first["messages"][0]["content"] == "I am <EMAIL>"
    assert first["messages"][0]["calls"] == [{"arguments": '{"to": "<PHONE>"}'}]
    assert first["extra"] == '{"mail": "<EMAIL>", "n": 1, "é": "é"}'
    assert redacted[1:].equals(frame[1:])
    assert Redaction(("phone",), ("US",)).frame(frame, ["messages", "extra"])[1].to_list() == [1, 0, 0]


def test_a_region_that_does_not_exist_is_refused() -> None:
    """The message names the parameter."""
    with pytest.raises(StageParameterError, match="regions"):
        Pii(regions=("UK",))


def test_no_text_with_personal_data_is_screened_out() -> None:
    """The quick pattern of the column engine lets through each text in which the slow search finds something."""
    texts = pl.Series([*ITEMS, "nothing here"])
    passed = texts.str.contains(SCREEN)
    assert all(there for text, there in zip(texts, passed, strict=True) if kinds(text))
    assert not passed[-1]


def test_items_of_synthetic_sentences_are_found() -> None:
    """On presidio-research's 1,500 sentences no item is false, and all but phone numbers without a hint are found."""
    path = SHARED / "data" / "pii" / "presidio_synth_v2.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    known = {"PHONE_NUMBER": "phone", "EMAIL_ADDRESS": "email", "CREDIT_CARD": "card", "IBAN_CODE": "iban"}
    known["IP_ADDRESS"] = "ip"
    hits, misses, false = (dict.fromkeys(KINDS, 0) for _ in range(3))
    for row in pl.read_parquet(path).iter_rows(named=True):
        found = spans(row["text"], Pii().regions)
        wanted = [(known[span["type"]], span) for span in row["spans"] if span["type"] in known]
        for kind, span in wanted:
            hit = any(one.kind == kind and one.start < span["end"] and span["start"] < one.stop for one in found)
            (hits if hit else misses)[kind] += 1
        for one in found:
            false[one.kind] += not any(
                one.kind == kind and one.start < span["end"] and span["start"] < one.stop for kind, span in wanted
            )
    assert false == dict.fromkeys(KINDS, 0)
    assert misses == {**dict.fromkeys(KINDS, 0), "phone": 16}
    assert hits == {"email": 49, "key": 0, "iban": 21, "card": 136, "ip": 14, "phone": 76}
