"""The elastic part that all transformer spaces have in common: a stack of blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from search_spaces.attention import TransformerBlock
from search_spaces.choice import Candidate, Choice
from search_spaces.layers import activation_function

__all__ = ["MIXED", "Stack", "StackStyle", "stack_blocks", "stack_choices"]

MIXED = ("*.ffn.fc1.*", "*.ffn.fc2.*")


@dataclass(frozen=True)
class Stack:
    """Candidates of a stack of transformer blocks.

    Args:
        widths: ascending candidates for the features of the residual stream, one for the whole stack.
        depths: ascending candidates for the number of blocks; a shallower stack has the first ones.
        heads: ascending candidates for the heads of self-attention.
        ffn_ratios: ascending candidates for the hidden features of a feed-forward part as a multiple of the width,
            rounded to whole features.
        ffn_widths: the same in absolute numbers, instead of ``ffn_ratios``.
        cross_heads: ascending candidates for the heads of attention to an encoder; for decoders that have one.

    Raises:
        ValueError: a candidate is below one or they do not ascend, or both or neither of ``ffn_ratios`` and
            ``ffn_widths`` are given.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ffn_ratios: tuple[float, ...] = ()
    ffn_widths: tuple[int, ...] = ()
    cross_heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("widths", "depths", "heads", "ffn_ratios", "ffn_widths", "cross_heads"):
            values = tuple(getattr(self, field))
            object.__setattr__(self, field, values)
            least = 0 if field == "ffn_ratios" else 1
            if any(value < least or value == 0 for value in values) or list(values) != sorted(set(values)):
                raise ValueError(f"{field} must be ascending numbers above zero, got {values}")
        if missing := [field for field in ("widths", "depths", "heads") if not getattr(self, field)]:
            raise ValueError(f"{' and '.join(missing)} must name at least one candidate, got none")
        if bool(self.ffn_ratios) == bool(self.ffn_widths):
            raise ValueError(
                "exactly one of ffn_ratios (multiples of the width) and ffn_widths (features) is required, got "
                f"ffn_ratios={self.ffn_ratios} and ffn_widths={self.ffn_widths}"
            )


@dataclass(frozen=True)
class StackStyle:
    """What is the same in all blocks of a space.

    Args:
        head_dim: features of a head.
        per_layer: whether every block chooses its own heads and feed-forward features.
        positions: ``"learned"`` vectors added to the tokens, or ``"rotary"`` queries and keys.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
        dropout: of embeddings, attention weights and residual branches, in training.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    head_dim: int
    per_layer: bool
    positions: Literal["learned", "rotary"]
    activation: str
    dropout: float

    def __post_init__(self) -> None:
        activation_function(self.activation)
        if self.head_dim < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"head_dim >= 1 and 0 <= dropout < 1 must hold, got head_dim={self.head_dim}, dropout={self.dropout}"
            )
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"positions must be 'learned' or 'rotary', got {self.positions!r}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of features; head_dim must be even, got {self.head_dim}")


def _per_layer(stack: Stack) -> list[tuple[str, tuple[Candidate, ...]]]:
    """Name and candidates of what each block chooses."""
    hidden: tuple[str, tuple[Candidate, ...]] = (
        ("ffn_ratio", stack.ffn_ratios) if stack.ffn_ratios else ("ffn_width", stack.ffn_widths)
    )
    cross: list[tuple[str, tuple[Candidate, ...]]] = [("cross_heads", stack.cross_heads)] if stack.cross_heads else []
    return [("heads", stack.heads), *cross, hidden]


def stack_choices(stack: Stack, style: StackStyle, prefix: str = "") -> list[Choice]:
    """Return the choices of ``stack``, those with one candidate included: ``width``, ``depth``, ``layer1.heads`` ..."""
    choices = [Choice(f"{prefix}width", stack.widths), Choice(f"{prefix}depth", stack.depths)]
    if not style.per_layer:
        return [*choices, *(Choice(prefix + name, candidates) for name, candidates in _per_layer(stack))]
    for number in range(1, stack.depths[-1] + 1):
        requires = (f"{prefix}depth", number) if number > stack.depths[0] else None
        choices += [
            Choice(f"{prefix}layer{number}.{name}", candidates, requires=requires)
            for name, candidates in _per_layer(stack)
        ]
    return choices


def stack_blocks(
    stack: Stack, style: StackStyle, values: Mapping[str, Candidate], prefix: str = "", **options: Any
) -> nn.ModuleList:
    """Return the static blocks that ``values`` choose.

    Args:
        stack: the candidates.
        style: of every block.
        values: choice -> value, those with one candidate included.
        prefix: of the choices' names.
        options: further arguments of every :class:`TransformerBlock`.
    """
    width = int(values[f"{prefix}width"])
    blocks = nn.ModuleList()
    for number in range(1, int(values[f"{prefix}depth"]) + 1):
        start = f"{prefix}layer{number}." if style.per_layer else prefix
        if stack.ffn_ratios:
            hidden = max(1, round(width * float(values[f"{start}ffn_ratio"])))
        else:
            hidden = int(values[f"{start}ffn_width"])
        block = TransformerBlock(
            width,
            int(values[f"{start}heads"]),
            hidden,
            head_dim=style.head_dim,
            cross_heads=int(values[f"{start}cross_heads"]) if stack.cross_heads else 0,
            rotary=style.positions == "rotary",
            activation=style.activation,
            dropout=style.dropout,
            **options,
        )
        blocks.append(block)
    return blocks
