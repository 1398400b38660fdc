"""The leaderboard as one HTML file: its data, our script and style, and the table library, with nothing to fetch.

Whatever stands in a record is data: it goes into a block of JSON that cannot be closed by its content, and the script
puts it on the page as text. A content security policy lets only the two scripts of this file run, by their hashes.
"""

import base64
import hashlib
import html as escaping
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENDOR = HERE / "vendor" / "tabulator"
ASSETS = HERE / "assets"


def html(entries: list[dict[str, Any]], parts: list[Any], explained: str) -> str:
    """The page. Every value in ``entries`` and ``parts`` is a JSON value."""
    library, script = ((folder / name).read_text(encoding="utf-8") for folder, name in (
        (VENDOR, "tabulator.min.js"), (ASSETS, "page.js"),
    ))  # fmt: skip
    library = library.partition("\n//# sourceMappingURL=")[0]
    style = (VENDOR / "tabulator_simple.min.css").read_text(encoding="utf-8").partition("\n/*# sourceMappingURL=")[0]
    fields = {
        "POLICY": f"default-src 'none'; style-src 'unsafe-inline'; script-src {_hash(library)} {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "EXPLAINED": escaping.escape(explained),
        "VENDOR_STYLE": style,
        "STYLE": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "DATA": data(entries, parts),
        "LIBRARY": library,
        "SCRIPT": script,
    }
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    pieces = page.split("{{")  # one pass, so that what is filled in is never filled in again
    return pieces[0] + "".join(fields[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def data(entries: list[dict[str, Any]], parts: list[Any]) -> str:
    """JSON for inside a script element: no character of it can end the element, or begin a comment in it."""
    text = json.dumps({"entries": entries, "parts": parts}, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
