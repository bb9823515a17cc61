"""Personal data in messages: what there is, of which kind, and who wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import phonenumbers
import polars as pl

from stages.pii.find import KINDS, SCREEN, spans
from stages.stage import Axis, Stage, require
from stages.text.messages import by_row, spoken


@dataclass(frozen=True)
class Pii(Stage):
    """Personal data by kind and role: addresses, numbers and keys that could be somebody's.

    Text, reasoning and tool calls of all messages are read. A pattern proposes, and a check decides: check digits of
    cards (Luhn) and IBANs (ISO 13616), Google's libphonenumber for phone numbers, the address space for IP addresses.
    Names and postal addresses are not found; they need a model.

    Signals (numbers of items, each occurrence counted):
        pii: of any kind.
        pii_email: e-mail addresses, but those of reserved domains such as example.com.
        pii_phone: phone numbers: with an international prefix, grouped as in one of `regions`, or beside a word such
            as "phone" or "fax".
        pii_ip: public IP addresses.
        pii_card: numbers of payment cards.
        pii_iban: international bank account numbers.
        pii_key: keys and tokens of well-known services, and private keys.
        pii_user, pii_assistant: of any kind, in messages of that role.
    """

    regions: tuple[str, ...] = ("US", "CA", "GB")
    """Countries (two letters, ISO 3166) whose phone numbers are found by how their digits are grouped."""

    summary: ClassVar[str] = "personal data by kind: e-mail, phone, IP, card and IBAN numbers, keys of services"
    reads: ClassVar[tuple[str, ...]] = ("messages", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        dict.fromkeys(("pii", *(f"pii_{kind}" for kind in KINDS), "pii_user", "pii_assistant"), pl.UInt32())
    )
    axes: ClassVar[Mapping[str, Axis]] = {"pii": Axis("items of personal data", rank=350)}

    def __post_init__(self) -> None:
        known = phonenumbers.SUPPORTED_REGIONS
        expected = "countries as two capital letters, such as US, GB or DE"
        require("pii: regions", list(self.regions), set(self.regions) <= known, expected)

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        read = pl.concat_str("content", "reasoning", "calls", separator="\n", ignore_nulls=True)
        turns = spoken(batch).select("row", "role", text=read).filter(pl.col("text").str.contains(SCREEN))
        found = [
            (row, role, span.kind) for row, role, text in turns.iter_rows() for span in spans(text, self.regions)
        ]  # a loop over the few messages that may hold any
        items = pl.DataFrame(found, {"row": pl.UInt32, "role": pl.String, "kind": pl.String}, orient="row")
        counts = items.group_by("row").agg(
            pii=pl.len(),
            **{f"pii_{kind}": (pl.col("kind") == kind).sum() for kind in KINDS},
            **{f"pii_{role}": (pl.col("role") == role).sum() for role in ("user", "assistant")},
        )
        return by_row(batch.height, counts).select(self.writes.names()).fill_null(0).cast(self.writes)
