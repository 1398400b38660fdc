"""Numbers as text; what is not known (NaN) is shown as missing, and is nothing in data."""

import math
from typing import Any

from analysis.render import MISSING


def shown(value: float, digits: int) -> str:
    """With so many digits after the point."""
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def thousands(value: float) -> str:
    """Whole, with commas."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def fixed(value: float, digits: int) -> str:
    """As data, with so many digits after the point."""
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def count(value: float) -> str:
    """As data, whole where it is."""
    return "" if not math.isfinite(value) else str(int(value)) if value == int(value) else repr(value)


def said(value: Any) -> bool:
    """Whether it is a text."""
    return isinstance(value, str) and value != ""  # pandas turns an absent text into NaN
