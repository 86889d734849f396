"""Text that was not written by us, made safe for the places where it is shown.

Paths from a URL, names of files, plans, classes and tensors, titles of jobs and messages of errors
may contain Markdown, or HTML in a chart. Shown as it is, it could make the browser fetch a picture
from elsewhere, or put a foreign link on a page. All such text goes through one of these functions;
``st.code``, tables and lists of choices show plain text anyway.
"""

from __future__ import annotations

import re
from html import escape

#: Invisible. It separates what Streamlit replaces in text whether it is escaped or not.
_JOINER = "\N{WORD JOINER}"
_REPLACED = (
    re.compile(r"(?i)(https?:)(?=//)"),  # these three become links
    re.compile(r"(?i)(www)(?=\.)"),
    re.compile(r"(@)(?=[-\w]+\.)"),
    re.compile(r"(:)(?=material/|[\w+-]+:)"),  # icons and emoji
    re.compile(r"(?<!\S)(<->|->|<-|--|>=|<=|~=)(?!\S)"),  # arrows and dashes
)
_ICON = re.compile(r"(:)(?=material/)")  # replaced in code, too
_SPACES = re.compile(r"\s+")
_SPECIAL = re.compile(r"[\\`*{}\[\]|~$<>&]|:(?=[A-Za-z:])|(?<![^\W_])_|_(?![^\W_])")
_FIRST = re.compile(r"^( ?\d*)([-+#.)])")  # lists and headings
_BACKTICKS = re.compile(r"`+")


def in_markdown(text: str) -> str:
    """Escape a text so that markdown shows it unchanged, as one line."""
    text = _SPACES.sub(" ", text)
    for replaced in _REPLACED:
        text = replaced.sub(rf"\1{_JOINER}", text)
    text = _SPECIAL.sub(r"\\\g<0>", text)
    return _FIRST.sub(r"\1\\\2", text)


def in_code(text: str) -> str:
    """Return a text as a code span of markdown, which it cannot end."""
    text = _ICON.sub(rf"\1{_JOINER}", _SPACES.sub(" ", text))
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(text)), default=0))
    space = " " if "`" in text or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def in_chart(text: str) -> str:
    """Escape a text for labels and tooltips of plotly, which contain a kind of HTML."""
    return escape(_SPACES.sub(" ", text), quote=False).replace("%{", "&#37;{")
