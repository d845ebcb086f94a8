"""Format numbers and text in the same way for all views."""

import re

import humanize

UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters except tab and newline, marks of text direction, lone surrogates."""


def format_count(number: float) -> str:
    """Return a number in three digits, with k or M."""
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.3g}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(hours: float) -> str:
    """Return a duration in words: 2 hours and 40 minutes."""
    least = "seconds" if hours < 1 / 6 else "minutes"
    return humanize.precisedelta(3600 * hours, minimum_unit=least, suppress=["days"], format="%.0f")


def flatten(text: str) -> str:
    """Return the text on one line, with single spaces."""
    return " ".join(text.split())


def name_numbers(text: str, session: str) -> str:
    """Return the text with `#7` written out as `experiment 7 of SESSION`: another session has a #7 of its own."""
    return re.sub(r"(?<!['\"])#(\d{1,5})\b", lambda number: f"experiment {number[1]} of {session}", text)  # no color


def shorten(text: str, limit: int) -> str:
    """Return the text on one line, cut to that many characters."""
    line = flatten(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def make_printable(text: str, limit: int | None = None) -> str:
    """Return an untrusted text that cannot control a terminal or reorder its surroundings, cut to a limit."""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}\n… {len(text) - limit:,} more characters"
    return UNPRINTABLE.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))
