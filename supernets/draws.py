"""Architectures drawn until there are enough of them."""

from collections.abc import Callable, Sequence

from search_spaces import Architecture

__all__ = ["distinct"]


def distinct(
    draw: Callable[[], Architecture], count: int, constraints: Sequence[Callable[[Architecture], bool]], *, tries: int
) -> list[Architecture]:
    """Return ``count`` distinct results of ``draw`` that satisfy every constraint.

    Args:
        draw: gives one architecture.
        count: how many.
        constraints: each returns whether an architecture is acceptable.
        tries: draws before giving up.

    Raises:
        ValueError: fewer than ``count`` were found.
    """
    found: dict[Architecture, None] = {}
    for _ in range(tries):
        if len(found) == count:
            break
        architecture = draw()
        if architecture not in found and all(accept(architecture) for accept in constraints):
            found[architecture] = None
    if len(found) < count:
        raise ValueError(
            f"found {len(found)} of {count} distinct architectures within the constraints in {tries} draws; "
            "loosen the constraints, ask for fewer or raise tries"
        )
    return list(found)
