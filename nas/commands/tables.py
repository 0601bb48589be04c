"""Tables and numbers as people read them in a terminal."""

from collections.abc import Sequence

__all__ = ["amount", "table"]


def amount(value: float, unit: str = "1") -> str:
    """Return a value with its unit: fractions in percent, counts with separators.

    >>> amount(0.97222, "fraction"), amount(18426.0), amount(0.0832, "nats"), amount(1.25e9, "MAC")
    ('97.22 %', '18,426', '0.0832 nats', '1,250,000,000 MAC')
    """
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    text = f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"
    return text if unit in ("", "1") else f"{text} {unit}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header in aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = list(zip(cells, widths, strict=True))
        aligned = [cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs)]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join((line(header), rule, *(line(row) for row in rows)))
