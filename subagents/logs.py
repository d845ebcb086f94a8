"""Clean, cut and fence what a candidate printed before a model sees it, since it may be hostile.

A fence cannot be forged: every line of the log begins with a bar, and the lines that open and close it do not.
"""

import re
from collections.abc import Collection, Iterable, Sequence, Sized
from itertools import accumulate, groupby

HEAD, TAIL = 200_000, 800_000  # characters read, from the beginning and from the end
LINE = 240  # characters of a line
FENCE = 4_000  # characters of a fenced excerpt: about 1,100 tokens
FRAMES = 8
ENDS = re.compile(r"\r\n|\n|\r")
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)
"""Control characters, and characters that people cannot see but a model reads."""
FRAME = re.compile(r'\s*File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<where>.+)')


def split_lines(log: str) -> list[str]:
    """Return the cleaned lines of a log, without empty ones; repeated ones appear once, with their count."""
    if len(log) > HEAD + TAIL:
        log = f"{log[:HEAD]}\n… {len(log) - HEAD - TAIL:,} characters left out …\n{log[-TAIL:]}"
    cleaned = (clean(line) for line in ENDS.split(log))
    counted = ((line, sum(1 for _ in same)) for line, same in groupby(line for line in cleaned if line.strip()))
    return [line if count == 1 else f"{line}  (× {count})" for line, count in counted]


def clean(line: str, limit: int = LINE) -> str:
    """Return one line without escape sequences and invisible characters, cut to `limit` characters."""
    text = UNSEEN.sub("", ANSI.sub("", line[: 4 * limit])).replace("\t", "    ").rstrip()
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def fence(lines: Sequence[str], limit: int = FENCE) -> str:
    """Return the lines between the marks that prompts declare to be data, cut at `limit` characters."""
    kept = lines[: count_fitting(lines, limit)]
    note = ["… cut here"] * (len(kept) < len(lines))
    return "\n".join(["<log>", *(f"| {line}" for line in (*kept, *note)), "</log>"])


def count_fitting(lines: Iterable[Sized], limit: int = FENCE, extra: int = 3) -> int:
    """Return how many of the first lines fit into `limit`, each with `extra` more characters (or bytes)."""
    return sum(size <= limit for size in accumulate(len(line) + extra for line in lines))


def quote(text: str, limit: int = 160) -> str:
    """Return a few words of a log for use in a sentence, between quotation marks that they cannot contain."""
    cleaned = " ".join(clean(part, max(LINE, limit)) for part in ENDS.split(text[: 4 * limit]))
    words = " ".join(cleaned.replace("«", "<").replace("»", ">").split())
    return f"«{words if len(words) <= limit else words[: limit - 1] + '…'}»"


def extract_frames(lines: Sequence[str], paths: Collection[str] = ()) -> list[str]:
    """Return the last traceback's frames in train.py or `paths`, with code, wherever they lie in a run's folder."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return []
    traceback = lines[starts[-1] + 1 :]
    frames: list[str] = []
    for line, code in zip(traceback, [*traceback[1:], ""], strict=False):
        if not (frame := FRAME.fullmatch(line)):
            continue
        path = frame["path"]
        is_named = path[0] != "/" and any(name and f"/{path}".endswith(f"/{name}") for name in paths)
        if is_named or path.rpartition("/")[2] == "train.py":
            frames.append(f"{f'{path}, ' * is_named}line {frame['line']}, in {frame['where']}: {code.strip()}")
    raised = [line for line in traceback if not line.startswith(" ")]
    return [*frames[-FRAMES:], *raised[:1]]
