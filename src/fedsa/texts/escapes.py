r"""Names of strangers (clients, labels, columns, files), made safe where they are shown: one function per medium.

>>> for_terminal("site\x1b[2J\n"), for_markdown("<b>|\n"), for_latex("50 % \\of"), for_csv("=1+1")
('site\\x1b[2J\\n', '&lt;b&gt;\\|\\\\n', '50 \\% \\textbackslash{}of', "'=1+1")
"""

from __future__ import annotations

import re
import sys
import unicodedata

__all__ = [
    "for_csv",
    "for_drawing",
    "for_html",
    "for_json",
    "for_latex",
    "for_markdown",
    "for_markdown_cell",
    "for_markdown_code",
    "for_terminal",
    "say",
    "say_aside",
]

_TURNS_TEXT_AROUND = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters without a shape that change the direction in which the text around them is shown."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#$])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "○": r"$\circ$",
    "×": r"$\times$",
    "–": "--",
}


def for_terminal(text: str, *, lines: bool = False) -> str:
    r"""Return a text without characters that command a terminal: they are spelt out, as in a Python string.

    Args:
        text: any.
        lines: keep line breaks and tabs, for a whole message.

    >>> for_terminal("a\x07\u202eb\ud800"), for_terminal("one\ntwo", lines=True)
    ('a\\x07\\u202eb\\ud800', 'one\ntwo')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if _is_command(character) and not (lines and character in "\n\t")
        else character
        for character in text
    )


def for_drawing(text: str) -> str:
    r"""Return a text for matplotlib: on one line, and no formula.

    >>> for_drawing("5 $ or 6 $\n")
    '5 \\$ or 6 \\$\\n'
    """
    return for_terminal(text).replace("$", r"\$")


def for_html(text: str) -> str:
    """Return a text for a page whose template escapes ``&``, ``<``, ``>`` and quotes: control characters spelt out."""
    return for_terminal(text, lines=True)


def for_json(text: str) -> str:
    r"""Return a JSON text that stays the same JSON, with what commands a terminal as escapes of JSON's own.

    >>> print(for_json('{"a": "\x9b\udc80"}'))
    {"a": "\u009b\udc80"}
    """
    return "".join(
        f"\\u{ord(character):04x}" if _is_command(character) and character not in "\n\t" else character
        for character in text
    )


def say(text: str = "") -> None:
    """Print a message: names in it cannot command the terminal."""
    print(for_terminal(text, lines=True))


def say_aside(text: str) -> None:
    """Print a message on standard error: what a program that reads standard output must not meet."""
    print(for_terminal(text, lines=True), file=sys.stderr, flush=True)


def for_markdown(text: str) -> str:
    r"""Return a text as plain words in Markdown: no HTML, no link, no emphasis, no new line, no table cell.

    >>> for_markdown("a_b <img src=x> [x](y)")
    'a\\_b &lt;img src=x&gt; \\[x\\](y)'
    """
    text = _MARKDOWN.sub(r"\\\1", for_terminal(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def for_markdown_code(text: str) -> str:
    r"""Return a text as code within a line of Markdown, whatever backticks are in it.

    >>> for_markdown_code("text"), for_markdown_code("a`b\n"), for_markdown_code("`")
    ('`text`', '``a`b\\n``', '`` ` ``')
    """
    text = for_terminal(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text[:1] in ("`", " ", "") or text[-1:] in ("`", " ") else ""
    return f"{fence}{space}{text}{space}{fence}"


def for_markdown_cell(text: str) -> str:
    r"""Return a text as a cell of a Markdown table, which is also read as it is: no HTML, no further cell, no new line.

    >>> for_markdown_cell("fed_sb|<b>\n")
    'fed_sb\\|&lt;b>\\n'
    """
    return for_terminal(text).replace("|", r"\|").replace("<", "&lt;")


def for_latex(text: str) -> str:
    r"""Return a text as plain words in LaTeX.

    >>> for_latex("A & B_1\n")
    'A \\& B\\_1\\textbackslash{}n'
    """
    return "".join(_LATEX.get(character, character) for character in for_terminal(text))


def for_csv(text: str) -> str:
    r"""Return a text for a cell of a CSV file (quoted by its writer), which no spreadsheet takes for a formula.

    >>> for_csv("-0.5"), for_csv("@SUM(A1)"), for_csv("plain")
    ('-0.5', "'@SUM(A1)", 'plain')
    """
    text = for_terminal(text)
    return f"'{text}" if text[:1] in "=+-@" and text and not _is_number(text) else text


def _is_command(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS_TEXT_AROUND


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
