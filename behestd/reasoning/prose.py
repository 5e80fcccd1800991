"""What prose says that can mean one thing alone: lists, verdicts, scores, choices, orders. Pure. Above: `lenient`.

Each reader gives None for what it does not find, and for what could mean two things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARK = re.compile(
    r"(?P<indent>[ \t]*)(?:#{1,6}[ \t]+)?(?:\*\*)?"
    r"(?:\(?(?P<number>\d{1,3})[.):](?!\d)|step[ \t]+(?P<step>\d{1,3})[.:)]|(?P<bullet>[-*+\u2022])(?=[ \t]))"
    r"(?P<text>.*)",
    re.IGNORECASE,
)
_NUMBERED = ("number", "step")
_PASSED = frozenset({"pass", "passed", "passes", "yes", "true"})
_WORD = r"(?P<word>pass(?:ed|es)?|fail(?:ed|s)?|yes|no|true|false)"
_STRONG = r"(?P<word>pass(?:ed|es)?|fail(?:ed|s)?)"
_AFTER = r"[*_`\"']*(?:\W*|[.,:;!\u2013\u2014-].*)"
_VERDICT = re.compile(rf"\W*(?:(?:(?:final|overall)\s+)?(?:verdict|result|passed)\W+)?{_WORD}\W*", re.IGNORECASE)
_VERDICT_NAMED = re.compile(rf"\W*(?:(?:final|overall)\s+)?(?:verdict|result|passed)\W+{_WORD}{_AFTER}", re.IGNORECASE)
_VERDICT_LEADING = re.compile(rf"\W*{_STRONG}{_AFTER}", re.IGNORECASE)
_SAYS = re.compile(rf"\b{_STRONG}\b", re.IGNORECASE)

_VALUE = (
    r"(?P<value>\d{1,3}(?:\.\d{1,6})?)(?:\s*(?:/|out\s+of)\s*(?P<scale>1|5|10|20|100)(?:\.0)?|\s*(?P<percent>%|percent\b))?"
    r"(?![\w/%]|\.\d|\s*(?:/|to\b|out\b|[-\u2013]\s*\d))"
)
_SCORE_ALONE = re.compile(rf"(?:[-*\u2022]\s+)?[\s*_`\"']*{_VALUE}[\s*_`\"'.]*")
_SCORE_NAMED = re.compile(
    rf"\b(?:(?:score|rating|grade)(?:\s+(?:is|of))?|(?:give|rate)\s+(?:it|this)(?:\s+an?)?)\b(?:[\s:=*_`\"']|-\s){{1,8}}{_VALUE}",
    re.IGNORECASE,
)
_LABEL = r"(?:artifact|candidate|option|number)\s*"
_NUMBER_ALONE = re.compile(rf"[\s*_`\"']*(?P<label>{_LABEL})?#?(?P<number>\d{{1,4}})[\s*_`\"'.!]*", re.IGNORECASE)
_CHOSEN = re.compile(
    r"(?<!not )(?<!n't )(?<!never )\b(?:choice|choose|chosen|select|selected|selection|pick)\b[\s:=*_`\"']{1,6}"
    rf"(?:is\s+|the\s+){{0,2}}(?:(?:{_LABEL}|#)#?(?P<named>\d{{1,4}})\b|(?P<bare>\d{{1,4}})(?=[\s*_`\"']*(?:[.,;:!)\n]|\Z)))"
    rf"(?!\s*(?:or|and|,|/|-)\s*(?:{_LABEL})?#?\d)",
    re.IGNORECASE,
)
_ORDER_NAME = re.compile(r"\W*(?:the\s+)?(?:new\s+|best\s+)?order\b(?:\s+is\b)?\W*", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:[\s,;>\u2192-]|\bthen\b|\band\b|\bstep\b)+", re.IGNORECASE)
_FIRST_NUMBER = re.compile(r"(?:step\s+)?#?(\d{1,4})(?:[.:)\u2013\u2014-].*)?", re.IGNORECASE | re.DOTALL)


# --- lists ---


def listing(text: str) -> tuple[str, list[str]] | None:
    """What stands before the one list in a text, and its items: numbered from 1, or with the same bullets.

    What is indented belongs to its item; so does all else between the numbers of a list, bullets too. What follows the
    last item is left out, unless it is another list: then nobody knows which is meant.
    """
    lines = text.splitlines()
    marks = [(place, mark) for place, line in enumerate(lines) if (mark := _MARK.fullmatch(line)) is not None]
    if not marks:
        return None
    kind = _kind(marks[0][1])
    indent = min(len(mark["indent"]) for _, mark in marks if _kind(mark) == kind)
    top = [(place, mark) for place, mark in marks if len(mark["indent"]) <= indent]
    heads = [(place, mark) for place, mark in top if _kind(mark) == kind]
    is_numbered = kind in _NUMBERED
    if (len(heads) < len(top) and not is_numbered) or not _is_counted(heads):
        return None
    ends = [*(place for place, _ in heads[1:]), len(lines)]
    items = [[mark["text"], *lines[place + 1 : end]] for (place, mark), end in zip(heads, ends, strict=True)]
    if not is_numbered and any(any(map(str.strip, item[_length(item, is_numbered=False) :])) for item in items[:-1]):
        return None
    last = _length(items[-1], is_numbered=is_numbered)
    if top[-1][0] >= heads[-1][0] + last:
        return None
    items[-1] = items[-1][:last]
    told = ["\n".join(line.strip() for line in item).replace("**", "").strip() for item in items]
    return ("\n".join(lines[: heads[0][0]]).strip(), told) if all(told) else None


def _kind(mark: re.Match[str]) -> str:
    return mark["bullet"] or ("step" if mark["step"] else "number")


def _is_counted(heads: Sequence[tuple[int, re.Match[str]]]) -> bool:
    """Whether the numbers of a list are those from 1, or all 1, which Markdown counts."""
    numbers = [int(mark["number"] or mark["step"]) for _, mark in heads if not mark["bullet"]]
    return numbers == list(range(1, len(numbers) + 1)) or set(numbers) == {1}


def _length(lines: Sequence[str], *, is_numbered: bool) -> int:
    """How many lines belong to an item, blank ones at its end apart.

    That is up to the first line that is not indented, which in a numbered list must stand behind a blank one.
    """
    length = 1
    for place, line in enumerate(lines[1:], start=1):
        if not line.strip():
            continue
        if line[0] not in " \t" and not (is_numbered and length == place):
            break
        length = place + 1
    return length


# --- verdicts ---


def verdict(text: str) -> bool | None:
    """Whether a text says that something passed: in a line that is a verdict, or with the word that it begins with.

    A yes or no counts only where it stands alone or behind "verdict" and the like: in a sentence it may deny problems.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    found = [_VERDICT.fullmatch(line) or _VERDICT_NAMED.fullmatch(line) for line in lines]
    if lines and found[0] is None:
        found[0] = _VERDICT_LEADING.fullmatch(lines[0])
    said = {_is_passed(mark) for mark in found if mark is not None}
    for mark in found:
        words = _SAYS.finditer(mark.string, mark.start("word")) if mark is not None else ()
        said |= {_is_passed(word) for word in words}
    return said.pop() if len(said) == 1 else None


def is_verdict(line: str) -> bool:
    """Whether a line is a verdict and nothing else."""
    return _VERDICT.fullmatch(line) is not None


def _is_passed(mark: re.Match[str]) -> bool:
    return mark["word"].lower() in _PASSED


# --- scores ---


def score(text: str) -> float | None:
    """The score that a text gives, from 0 to 1: alone on a line, or named as score. Ratios and percents are scores."""
    alone = (_SCORE_ALONE.fullmatch(line) for line in text.splitlines())
    found = {_scored(mark) for mark in (*alone, *_SCORE_NAMED.finditer(text)) if mark is not None}
    return found.pop() if len(found) == 1 else None


def _scored(mark: re.Match[str]) -> float | None:
    scale = 100 if mark["percent"] else int(mark["scale"] or 0)
    value = float(mark["value"])
    if not scale:
        return scaled(value)
    return value / scale if value <= scale else None


def scaled(number: float) -> float | None:
    """A score that is given without its scale: up to 1 as it is, over 10 up to 100 in percent.

    What is between may be out of 5, of 10 or of 100.
    """
    if 0 <= number <= 1:
        return number
    return number / 100 if 10 < number <= 100 else None


# --- numbers ---


def choice(text: str) -> int | None:
    """The number that a text chooses: one alone, artifact N alone on a line, or the one that it says it chooses."""
    alone = _NUMBER_ALONE.fullmatch(text)
    if alone is not None:
        return int(alone["number"])
    lines = (_NUMBER_ALONE.fullmatch(line) for line in text.splitlines())
    found = {int(mark["number"]) for mark in lines if mark is not None and mark["label"]}
    found |= {int(mark["named"] or mark["bare"]) for mark in _CHOSEN.finditer(text)}
    return found.pop() if len(found) == 1 else None


def order(text: str) -> list[int] | None:
    """The numbers that a text puts in order: they alone, or one at the head of each item of its list."""
    name = _ORDER_NAME.match(text)
    words = _BETWEEN.split((text[name.end() :] if name is not None else text).strip(" \t\r\n.[]()*"))
    if all(word.isdecimal() for word in words if word) and any(words):
        return [int(word) for word in words if word]
    listed = listing(text)
    marks = [_FIRST_NUMBER.fullmatch(item) for item in listed[1]] if listed is not None else []
    numbers = [int(mark[1]) for mark in marks if mark is not None]
    return numbers if marks and len(numbers) == len(marks) else None
