"""The page on which one types a text: one HTML file that loads nothing from elsewhere."""

import base64
import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


def _read(suffix: str) -> str:
    return (_FOLDER / f"query_page.{suffix}").read_text(encoding="utf-8")


def _source(content: str) -> str:
    """Return how a policy names a script or a style: by its hash."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def query_page() -> str:
    """Return the page. It is the same for every model; its script asks the server for what it shows."""
    return _read("html").replace("{style}", _read("css")).replace("{script}", _read("js"))


@cache
def policy() -> str:
    """Return its Content-Security-Policy: its own script and style alone, and requests to this server alone."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(_read('js'))}",
            f"style-src {_source(_read('css'))}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
