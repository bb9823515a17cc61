"""Personal data in a text: where it is, and of which kind. A pattern proposes, and a check decides."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn


@dataclass(frozen=True)
class Span:
    """Personal data of a kind at characters `start` to `stop` of a text."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True)
class _Kind:
    """A kind of personal data: the pattern that proposes a span, and the check that accepts it."""

    screen: str  # Rust pattern of the texts that are searched
    pattern: re.Pattern[str]
    accepts: Callable[[re.Match[str], Sequence[str]], bool]


_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[\w.+%'-]{0,62}[\w+%-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,5}"
    r"(?P<top>[A-Za-z]{2,18})(?![\w@-])"
)
_FILE_ENDING = re.compile(r"(?:css|gif|html|jpe?g|js|json|mp4|pdf|png|py|rb|svg|ts|txt|webp|xml|ya?ml)$", re.IGNORECASE)
_RESERVED = re.compile(
    r"(?:[@.]example\.(?:com|org|net|edu)|\.(?:example|test|invalid|localhost|local|internal))$", re.IGNORECASE
)


def _is_email(match: re.Match[str], _: Sequence[str]) -> bool:
    """Whether an address could be somebody's: its domain is not reserved (RFC 2606, RFC 6762), its end is no file's."""
    return not _FILE_ENDING.match(match["top"]) and not _RESERVED.search(match[0])


_PHONE = re.compile(
    r"(?<![\w./#$€£=_@:+*^-])(?<![-+*/^=] )(?<!\d,)"
    r"(?P<number>(?:\+|\b00)?[ ]?\(?\d(?:(?:[ .]|[ ]?[-/][ ]?|[ ]?\(|\)[ ]?[-.]?)?\d){6,16})"
    r"(?:[ ]?(?:x|ext\.?)[ ]?\d{1,5})?(?![\w%°/*^=]|[.,-]\d)"
)
_SAYS_PHONE = re.compile(
    r"\b(?:tele)?phones?\b|\btel\b|\bmobile\b|\bcell(?:ular)?\b|\bfax\b|\bhotline\b|\bwhatsapp\b|\bsms\b|\bdial\b"
    r"|\b(?:call|ring|text|reach|contact)\s+(?:me|us|him|her|them|back|at|on|now|[A-Z]\w+)\b",
    re.IGNORECASE,
)
_THEN_PHONE = re.compile(r"\W{0,3}(?:home|mobile|cell|fax|tel|phone|office)\b", re.IGNORECASE)
_CONTEXT = 40
"""Number of characters before a number in which a word such as "phone" makes it one."""
_NO_PHONE = re.compile(
    r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])\b"  # dates
    r"|(?:0?[1-9]|[12]\d|3[01])[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:19|20)\d\d\b"
    r"|(?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])[-./ ](?:19|20)\d\d\b"
    r"|(?:1[0-9]|20)\d\d ?[-/] ?(?:1[0-9]|20)\d\d\b"  # years from and to
    r"|\d+\.\d+$|(\d)\1{6}"  # decimals; 555-5555 and 0000000
)


def _is_phone(match: re.Match[str], regions: Sequence[str]) -> bool:
    """Whether a number has an international prefix, is grouped as in one of the regions, or is said to be a phone's."""
    number, before = match["number"].strip(), match.string[max(0, match.start() - _CONTEXT) : match.start()]
    if _NO_PHONE.match(number) or re.search(r"\bISBN\b|\bISSN\b|\bDOI\b", before, re.IGNORECASE):
        return False
    if number.startswith(("+", "00")):
        try:
            return phonenumbers.is_possible_number(phonenumbers.parse(re.sub("^00", "+", number)))
        except phonenumbers.NumberParseException:
            return False
    if _SAYS_PHONE.search(before) or _THEN_PHONE.match(match.string, match.end()):
        return True
    grouped = Leniency.STRICT_GROUPING
    plain = number.isdigit()  # ten digits in a row may be anything
    return not plain and any(PhoneNumberMatcher(number, region, grouped).has_next() for region in regions)


_IP = re.compile(
    r"(?<![\w.:-])(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?:::)?)(?![\w:]|[.-]\w)"
)
_SAYS_VERSION = re.compile(r"(?:\bv(?:er(?:sion)?)?\.?|\brelease|\bbuild|\bchapter|\bsection|§)\s*$", re.IGNORECASE)


def _is_ip(match: re.Match[str], _: Sequence[str]) -> bool:
    """Whether an address is public, as datatrove's formatter asks; 1.2.3.4 after "version" is none."""
    if _SAYS_VERSION.search(match.string[max(0, match.start() - 12) : match.start()]):
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global and match[0].count(":") != 2  # noqa: PLR2004 - 10:20:30 is a time
    except ValueError:
        return False


_CARD = re.compile(r"(?<![\w.,+/-])(?<![-+*/^=] )\d(?:[ -]?\d){11,18}(?![\w%]|[.,-]\d| ?[*^=])")
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}$|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}$|3[47]\d{13}$"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}(?:\d{3})?$|3(?:0[0-5]|[689]\d)\d{11}$|(?:352[89]|35[3-8]\d)\d{12}$"
    r"|(?:2131|1800)\d{11}$|62\d{14,17}$|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}$"
)
_SAYS_CARD = re.compile(r"\bcards?\b|\bvisa\b|\bmastercard\b|\bamex\b|\bcc\b", re.IGNORECASE)
_GROUPS = re.compile(r"\d{12,19}$|\d{4}([ -])\d{4}\1\d{4}(?:\1\d{1,4}){0,2}$|\d{4}([ -])\d{6}\2\d{4,5}$")


def _is_card(match: re.Match[str], _: Sequence[str]) -> bool:
    """Whether a number has a valid Luhn digit, a card's groups, and an issuer's prefix or the word "card" before it."""
    digits, before = re.sub("[ -]", "", match[0]), match.string[max(0, match.start() - _CONTEXT) : match.start()]
    known = _ISSUERS.match(digits) or _SAYS_CARD.search(before)
    return bool(_GROUPS.match(match[0]) and known) and luhn.is_valid(digits)


_IBAN = re.compile(
    r"(?<![\w/+=-])(?:[A-Za-z]{2}\d\d[A-Za-z0-9]{11,30}|[A-Z]{2}\d\d(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,3})?)"
    r"(?![\w/+=])"
)


def _is_iban(match: re.Match[str], _: Sequence[str]) -> bool:
    """Whether a number has its country's structure and valid check digits (ISO 13616)."""
    return iban.is_valid(match[0])


_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{36,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-(?:ant|proj|svcacct|admin)-[\w-]{24,}|sk-[A-Za-z0-9]{32,}"  # Anthropic, OpenAI
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}"  # Hugging Face, npm, PyPI
    r"|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}"  # Stripe
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}"  # Slack
    r"|https://hooks\.slack\.com/services/T\w+/B\w+/\w+"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}"  # Google
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|key-[0-9a-f]{32}|SK[0-9a-f]{32}|AC[0-9a-f]{32}"  # SendGrid, Mailgun, Twilio
    r"|\d{8,10}:AA[\w-]{33}|dop_v1_[0-9a-f]{64}|shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}"  # Telegram, DigitalOcean, Shopify
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"  # JSON web tokens
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:.{0,8000}?-----END [A-Z ]{0,40}-----)?",
    re.DOTALL,
)


def _is_key(match: re.Match[str], _: Sequence[str]) -> bool:
    """Whether a token is no placeholder: AWS's documentation and tutorials print keys that end in EXAMPLE or xxxx."""
    return not re.search(r"EXAMPLE|(.)\1{5}|your|1234567890", match[0][:200], re.IGNORECASE)


KINDS = {
    "email": _Kind(r"[\w.+%'-]@[A-Za-z0-9]", _EMAIL, _is_email),
    "key": _Kind(
        r"AKIA|ASIA|ABIA|ACCA|gh[pousr]_|github_pat_|glpat-|sk-|hf_|npm_|pypi-|[sr]k_|whsec_|xox|xapp-|hooks\.slack|AIza"
        r"|ya29|SG\.|key-|SK[0-9a-f]{8}|AC[0-9a-f]{8}|:AA|dop_v1|shp|eyJ|PRIVATE KEY",
        _KEY,
        _is_key,
    ),
    "iban": _Kind(r"[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{4}", _IBAN, _is_iban),
    "card": _Kind(r"[0-9](?:[ -]?[0-9]){11}", _CARD, _is_card),
    "ip": _Kind(r"[0-9]\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]:[0-9A-Fa-f:]+:", _IP, _is_ip),
    "phone": _Kind(r"[0-9](?:[ ./()-]{0,3}[0-9]){6}", _PHONE, _is_phone),
}
"""Kinds of personal data, in the order in which they claim characters."""

SCREEN = "|".join(f"(?:{kind.screen})" for kind in KINDS.values())
"""Rust pattern of texts that may hold personal data; all others hold none."""


def spans(text: str, regions: Sequence[str], kinds: Sequence[str] = tuple(KINDS)) -> list[Span]:
    """Personal data in a text, in order; no two spans overlap.

    Args:
        text: any text.
        regions: countries (ISO 3166, two letters) whose phone numbers are also found without international prefix.
        kinds: names in `KINDS`.
    """
    taken: list[Span] = []
    for name in KINDS:
        if name in kinds:
            taken += [span for span in _matches(name, text, regions) if not _overlaps(span, taken)]
    return sorted(taken, key=lambda span: span.start)


def _matches(name: str, text: str, regions: Sequence[str]) -> Iterator[Span]:
    kind = KINDS[name]
    for match in kind.pattern.finditer(text):
        if kind.accepts(match, regions):
            yield Span(match.start(), match.end(), name)


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(span.start < other.stop and other.start < span.stop for other in others)
