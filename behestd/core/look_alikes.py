"""What a text looks like: texts that people or programs take for the same become the same. Above: `permission`.

Not the whole table of Unicode's confusable characters, but what passes for plain ASCII: compatibility forms, invisible
characters, and the letters and signs of other scripts that are drawn like those of ASCII. Used beside the text itself,
never in its place, so that a fold too many can only make an answer stricter.
"""

from __future__ import annotations

from unicodedata import category, normalize

_DRAWN_LIKE = {
    "A": "\u0391\u0410",
    "B": "\u0392\u0412",
    "C": "\u03f9\u0421",
    "E": "\u0395\u0415",
    "H": "\u0397\u041d",
    "I": "\u0399\u0406\u04c0",
    "J": "\u0408",
    "K": "\u039a\u041a",
    "M": "\u039c\u041c",
    "N": "\u039d",
    "O": "\u039f\u041e",
    "P": "\u03a1\u0420",
    "Q": "\u051a",
    "S": "\u0405",
    "T": "\u03a4\u0422",
    "W": "\u051c",
    "X": "\u03a7\u0425",
    "Y": "\u03a5\u0423\u04ae",
    "Z": "\u0396",
    "a": "\u0251\u03b1\u0430",
    "c": "\u03f2\u0441",
    "d": "\u0501",
    "e": "\u0435",
    "g": "\u0261\u0581",
    "h": "\u04bb\u0570",
    "i": "\u0131\u0269\u03b9\u0456",
    "j": "\u03f3\u0458",
    "k": "\u03ba\u043a",
    "l": "\u04cf\u0627\u05d5",
    "n": "\u0578",
    "o": "\u03bf\u043e\u0585",
    "p": "\u03c1\u0440",
    "q": "\u051b",
    "s": "\u0455",
    "u": "\u03c5\u057d",
    "v": "\u03bd\u0475",
    "w": "\u051d",
    "x": "\u03c7\u0445",
    "y": "\u03b3\u0443\u04af",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "/": "\u2044\u2215\u2571\u29f8",
    "\\": "\u2216\u29f5\u29f9",
    ".": "\u3002",
    ":": "\u2236\ua789",
    "*": "\u2217",
    "~": "\u223c",
    "|": "\u2223",
    "'": "\u2018\u2019\u02bc",
    '"': "\u201c\u201d",
}
_ASCII = {ord(other): plain for plain, others in _DRAWN_LIKE.items() for other in others}
_INVISIBLE = dict.fromkeys(
    (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
)


def fold(text: str) -> str:
    """Give the plain text that a text looks like. A text of visible ASCII is its own."""
    if text.isascii() and text.isprintable():
        return text
    plain = normalize("NFKC", text).translate(_INVISIBLE)
    return normalize("NFKC", "".join(char for char in plain if not _is_hidden(char)).translate(_ASCII))


def _is_hidden(char: str) -> bool:
    """Whether a character is not seen and is no white space: a control or format character."""
    return category(char) in ("Cc", "Cf") and not char.isspace()
