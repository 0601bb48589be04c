"""What a runtime makes of searched bits, for people: tables of exported and of possible networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nas.commands.tables import table
from search_spaces import FULL_PRECISION, Architecture, SearchSpace, skeleton
from supernets.deployment import DeployClass, Deployed, deployment_summary, is_product
from supernets.export import MANIFEST

__all__ = ["deployed_layers", "deployment_card", "deployment_table", "possible_table", "promise"]

_LABELS: Mapping[str, str] = {"real": "real", "storage": "storage only", "simulated": "simulated"}
_HEADER = ("layer", "bits", "stored in", "deployed", "computes in", "operator")


def deployed_layers(manifest: Mapping[str, Any]) -> dict[str, Deployed]:
    """Return layer -> what became of it, from the manifest of an export; empty where no file packs bits."""
    rows: Mapping[str, Any] = next((file["layers"] for file in manifest["files"].values() if "layers" in file), {})
    return {name: Deployed(**row) for name, row in rows.items()}


def _rows(layers: Mapping[str, Deployed]) -> list[list[str]]:
    return [
        [
            name,
            f"{made.bits}/{made.input_bits}",
            str(made.stored_bits),
            _LABELS[made.deploy],
            made.computes,
            made.operator,
        ]
        for name, made in layers.items()
    ]


def deployment_table(layers: Mapping[str, Deployed]) -> str:
    """Return one line for each layer, bits being of weights and inputs, then each reason once and the summary."""
    reasons = list(dict.fromkeys(f"{_LABELS[made.deploy]}: {made.reason}" for made in layers.values() if made.reason))
    return "\n".join([table(_HEADER, _rows(layers)), *reasons, f"layers: {deployment_summary(list(layers.values()))}"])


def deployment_card(layers: Mapping[str, Deployed]) -> str:
    """Return the same in Markdown, for the description of a registered model."""
    lines = [" | ".join(row) for row in (_HEADER, ["---"] * len(_HEADER), *_rows(layers))]
    return (
        f"Quantised layers: {deployment_summary(list(layers.values()))}. Bits are of weights/inputs; `{MANIFEST}` has "
        "the reasons.\n\n" + "\n".join(f"| {line} |" for line in lines)
    )


def promise(layer: nn.Module, bits: int) -> DeployClass:
    """Return the best that ``onnx-lowbit`` can make of the weights of a layer; the export says what it made.

    Args:
        layer: linear or convolutional.
        bits: of its weights.
    """
    if bits not in (2, 4, 8):
        return "simulated"
    if is_product(layer) or bits == 8:
        return "real"
    return "storage"


def possible_table(space: SearchSpace, architectures: Sequence[Architecture]) -> str | None:
    """Return what can become of the bits of a space by kind of layer, or ``None`` where nothing is quantised.

    Args:
        space: whose layers may have few bits.
        architectures: whose layers and bits are looked at.
    """
    found: dict[str, dict[str, set[int]]] = {}
    for architecture in architectures:
        bitwidths = {n: bits for n, (bits, _) in space.bitwidths(architecture).items() if bits < FULL_PRECISION}
        if not bitwidths:
            continue
        with torch.device("meta"):
            module = skeleton(space, architecture)
        for name, bits in bitwidths.items():
            layer = module.get_submodule(name)
            kind = "matrix products (linear, 1x1 convolution)" if is_product(layer) else "other convolutions"
            found.setdefault(kind, {}).setdefault(promise(layer, bits), set()).add(bits)
    if not found:
        return None
    rows = [
        [kind, *(", ".join(map(str, sorted(classes.get(key, ())))) or "-" for key in _LABELS)]
        for kind, classes in found.items()
    ]
    header = ["weight bits as onnx-lowbit", *_LABELS.values()]
    note = "8-bit convolutions are real where inputs and outputs are quantised too, else storage only"
    return table(header, rows) + f"\n{note}"
