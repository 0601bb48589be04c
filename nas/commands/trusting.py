"""The option ``--trust``: packages of the user's own whose code a file may name."""

__all__ = ["packages"]


def packages(trust: list[str] | str) -> list[str]:
    """Return the packages that ``--trust`` names: one, a list, or several with commas between."""
    given = [trust] if isinstance(trust, str) else trust
    return [name.strip() for text in given for name in text.split(",") if name.strip()]
