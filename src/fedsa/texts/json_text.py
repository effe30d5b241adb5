"""JSON that may be a stranger's."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parsed_json"]


def parsed_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has half a character, which can be written to no file.
    """
    try:
        content = json.loads(text)
        has_escapes = b"\\u" in text if isinstance(text, bytes) else "\\u" in text
        if has_escapes:  # one may stand for half a character
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half a character ({error.object[error.start : error.end]!a})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content
