"""Architectures, single or relaxed, as numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from search_spaces.choice import Choice
from search_spaces.relaxed import RelaxedArchitecture

__all__ = ["encode", "one_hot", "presence"]


def one_hot(choices: Mapping[str, Choice], indices: Mapping[str, int]) -> RelaxedArchitecture:
    """Return all weight on one candidate of each choice, given by its position."""
    return RelaxedArchitecture(
        {name: nn.functional.one_hot(torch.tensor(indices[name]), c.size).float() for name, c in choices.items()}
    )


def presence(choices: Mapping[str, Choice], relaxed: RelaxedArchitecture) -> dict[str, Tensor]:
    """Return choice -> probability ``()`` that it exists, the choices being independent."""
    found: dict[str, Tensor] = {}
    for name, choice in choices.items():
        weights = relaxed[name]
        if choice.requires is None:
            found[name] = weights.new_ones(())
        else:
            parent, minimum = choice.requires
            enough = [float(v) >= minimum for v in choices[parent].candidates]
            found[name] = found[parent] * relaxed[parent][torch.tensor(enough, device=weights.device)].sum()
    return found


def encode(choices: Mapping[str, Choice], relaxed: RelaxedArchitecture) -> Tensor:
    """Return ``(D,)`` numbers in [0, 1]; see :meth:`search_spaces.SearchSpace.encode`."""
    present = presence(choices, relaxed)
    parts: list[Tensor] = []
    for name, choice in choices.items():
        weights = relaxed[name]
        if choice.kind == "categorical":
            parts.append(weights * present[name])
        else:
            low, high = (float(c) for c in (choice.candidates[0], choice.candidates[-1]))
            places = [(float(c) - low) / (high - low) if high > low else 0.0 for c in choice.candidates]
            parts.append((weights @ weights.new_tensor(places) * present[name])[None])
        if choice.requires is not None:
            parts.append(present[name][None])
    return torch.cat(parts) if parts else torch.zeros(0)
