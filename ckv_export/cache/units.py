"""Numbers as people read them: decimal units (1 kB = 1000 bytes), two to three digits."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def byte_unit(size: float) -> tuple[str, int]:
    """Name and bytes of the unit in which `size` reads well: ``("kB", 1000)``."""
    bytes_each = 1
    for unit in _UNITS[:-1]:
        if size < 999.5 * bytes_each:
            return unit, bytes_each
        bytes_each *= 1000
    return _UNITS[-1], bytes_each


def bytes_text(size: float) -> str:
    """``588 B``, ``4.59 kB``, ``1.20 TB``: three digits, units of 1000."""
    unit, bytes_each = byte_unit(size)
    return f"{size:.0f} B" if bytes_each == 1 else f"{_digits(size / bytes_each, 3)} {unit}"


def percent_text(share: float | None) -> str:
    """``0.59%``, ``9.7%``, ``37.5%``, ``100%``; ``-`` for None.

    What is nearly all or nearly nothing is not rounded into it: ``>99.9%``, ``<0.001%``.
    """
    if share is None:
        return "-"
    percent = 100 * share
    if 0 < percent < 0.001:
        return "<0.001%"
    if 99.95 <= percent < 100 - 1e-9:
        return ">99.9%"
    return f"{_digits(percent, 3 if percent >= 9.95 else 2)}%"


def count_text(number: float | None) -> str:
    """``12,345``; a fraction keeps one decimal below 100; ``-`` for None."""
    if number is None:
        return "-"
    if isinstance(number, int) or number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}"


def _digits(value: float, digits: int) -> str:
    """`value` with that many significant digits, trailing zeros kept: ``20.0``, ``100``."""
    return f"{value:#.{digits}g}".removesuffix(".") if value else "0"
