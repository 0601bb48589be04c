"""Names of subnetworks from which the subnetwork can be made again, by any process that serves its supernet."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from nas.service.schemas import SUBNETWORK
from search_spaces import Architecture, Candidate, InvalidArchitectureError, SearchSpace

__all__ = ["architecture_of", "revision_of", "split", "subnetwork_id"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PATTERN = re.compile(SUBNETWORK)


def revision_of(card: Mapping[str, Any], data: Any) -> str:
    """Return 16 hexadecimal digits over everything that the bytes of a subnetwork depend on.

    Args:
        card: of the supernet: its description and the version of its weights.
        data: description of the data module that calibrates.
    """
    text = json.dumps([card, data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def subnetwork_id(revision: str, space: SearchSpace, architecture: Architecture) -> str:
    """Return ``REVISION-NUMBER``: the number has one digit for each choice, in the base of its candidates.

    A choice that is not present counts as its first candidate, so one network has one name.
    """
    number = 0
    for choice in space.choices:
        index = choice.index(architecture[choice.name]) if choice.name in architecture else 0
        number = number * choice.size + index
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return f"{revision}-{text}"


def split(name: str) -> tuple[str, str] | None:
    """Return revision and number of a well-formed name, or ``None``."""
    if not _PATTERN.fullmatch(name):
        return None
    revision, _, number = name.partition("-")
    return revision, number


def architecture_of(space: SearchSpace, number: str) -> Architecture | None:
    """Return the architecture of a number, or ``None`` where :func:`subnetwork_id` gives no such number."""
    rest = int(number, 36)
    values: dict[str, Candidate] = {}
    for choice in reversed(space.choices):
        rest, index = divmod(rest, choice.size)
        values[choice.name] = choice.candidates[index]
    if rest:
        return None
    try:
        architecture = space.architecture(values)
    except InvalidArchitectureError:
        return None
    return architecture if subnetwork_id("", space, architecture) == f"-{number}" else None
