"""Architectures as pictures: the layers of a subnetwork inside those of the largest, and what each costs."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.reporting.panels import brief
from nas.reporting.svg import drawing, element, number, path, text

__all__ = ["Anatomy", "Layer", "portrait_figure"]

_LEFT, _MIDDLE, _TALL = 64.0, 96.0, 150.0
_ROWS = ((206.0, 70.0), (304.0, 70.0))


@dataclass(frozen=True)
class Layer:
    """One layer of a built network.

    Attributes:
        kind: what it does, in a word or two: ``"conv"``, ``"depthwise"``, ``"linear"``, ``"attention"``, or the name of
            its class.
        width: output channels or features.
        shape: of its weight, for people, such as ``"3x3"``; empty where the width says it all.
        params: parameters of its own.
        macs: multiply-accumulates of one example.
    """

    kind: str
    width: int
    shape: str
    params: int
    macs: int


@dataclass(frozen=True)
class Anatomy:
    """The layers of some architectures of one space.

    Attributes:
        order: names of all layers, in the order of the network.
        largest: layer name -> layer, of the largest architecture.
        trials: trial number -> the same of its architecture.
    """

    order: tuple[str, ...]
    largest: Mapping[str, Layer]
    trials: Mapping[int, Mapping[str, Layer]]


def _kind(layer: Layer) -> str:
    return layer.kind if layer.kind in ("conv", "depthwise", "linear", "attention", "embedding") else "other"


def _slot(anatomy: Anatomy) -> float:
    return max(9.0, min(84.0, 1020.0 / len(anatomy.order)))


def _tip(name: str, layer: Layer | None, full: Layer | None) -> str:
    if layer is None:
        return f"{name}\nnot in this architecture"
    of = "" if full is None else f" of {full.width}"
    lines = [name, f"{layer.kind}{f' {layer.shape}' if layer.shape else ''}, {layer.width}{of} wide"]
    return "\n".join([*lines, f"{layer.params:,} parameters", f"{layer.macs:,} MAC"])


def _body(name: str, layer: Layer | None, full: Layer | None, left: float, slot: float, widest: int) -> str:
    """Return one layer: a box as high as the root of its width, inside the outline of the largest."""

    def box(width: int, grow: float, **attributes: object) -> str:
        tall = max(4.0, _TALL * (width / widest) ** 0.5)
        wide = slot * 0.72 + grow
        return element(
            "rect", x=left + (slot - wide) / 2, y=_MIDDLE - tall / 2, width=wide, height=tall, rx=2.0, **attributes
        )

    parts = "" if full is None else box(full.width, 2.0, class_="outline")
    if layer is not None:
        parts += box(layer.width, 0.0, class_=f"layer {_kind(layer)}")
        if slot >= 30:
            middle = {"class_": "inside", "text_anchor": "middle"}
            parts += text(str(layer.width), left + slot / 2, _MIDDLE + 4, **middle)
            if layer.shape and layer.width / widest > 0.1:
                parts += text(layer.shape, left + slot / 2, _MIDDLE + 19, **middle)
    hit = element("rect", x=left, y=10.0, width=slot, height=370.0, class_="hit", data_tip=_tip(name, layer, full))
    return parts + hit


def _costs(values: Sequence[int], fulls: Sequence[int], kinds: Sequence[str], slot: float, row: int, what: str) -> str:
    top, tall = _ROWS[row]
    highest = max(*fulls, *values, 1)
    base = top + tall
    total = sum(values)
    parts = [
        path([(_LEFT, base), (_LEFT + slot * len(values), base)], class_="axis"),
        text(f"{what} {brief(total)}", _LEFT - 8, top - 8, class_="title"),
        text(brief(highest), _LEFT - 6, top + 10, class_="tick", text_anchor="end"),
    ]
    for index, (value, full, kind) in enumerate(zip(values, fulls, kinds, strict=True)):
        for amount, grow, style in ((full, 2.0, "outline"), (value, 0.0, f"layer {kind}")):
            if amount:
                wide, high = slot * 0.72 + grow, max(1.0, tall * amount / highest)
                left = _LEFT + slot * index + (slot - wide) / 2
                parts.append(element("rect", x=left, y=base - high, width=wide, height=high, class_=style))
    return "".join(parts)


def _portrait(anatomy: Anatomy, layers: Mapping[str, Layer], trial: int, *, shown: bool) -> str:
    slot = _slot(anatomy)
    widest = max(layer.width for found in (anatomy.largest, layers) for layer in found.values())
    none = Layer("", 0, "", 0, 0)
    mine = [layers.get(name, none) for name in anatomy.order]
    full = [anatomy.largest.get(name, none) for name in anatomy.order]
    kinds = [_kind(layer) for layer in mine]
    parts = [
        _costs([layer.macs for layer in mine], [layer.macs for layer in full], kinds, slot, 0, "MACs"),
        _costs([layer.params for layer in mine], [layer.params for layer in full], kinds, slot, 1, "parameters"),
    ]
    parts += [
        _body(name, layers.get(name), anatomy.largest.get(name), _LEFT + slot * index, slot, widest)
        for index, name in enumerate(anatomy.order)
    ]
    return element("g", "".join(parts), class_="portrait", data_portrait=trial, style=None if shown else "display:none")


def _names(anatomy: Anatomy) -> str:
    slot = _slot(anatomy)
    every = max(1, -(-13 // int(slot)))  # labels need 13 pixels each
    parts = []
    for index in range(0, len(anatomy.order), every):
        x = _LEFT + slot * (index + 0.5) + 4
        turn = f"rotate(-40 {number(x)} 392)"
        parts.append(text(anatomy.order[index], x, 392.0, class_="tick", text_anchor="end", transform=turn))
    return "".join(parts)


def portrait_figure(anatomy: Anatomy) -> str:
    """Return buttons for the trials, and for each the picture of its layers; the first is shown."""
    numbers = list(anatomy.trials)
    buttons = "".join(
        f'<button type="button" data-show="{trial}"{" class=chosen" if trial == numbers[0] else ""}>'
        f"trial {trial}</button>"
        for trial in numbers
    )
    pictures = "".join(_portrait(anatomy, anatomy.trials[trial], trial, shown=trial == numbers[0]) for trial in numbers)
    kinds = dict.fromkeys(
        _kind(layer) for found in (anatomy.largest, *anatomy.trials.values()) for layer in found.values()
    )
    key = "".join(f'<span><i class="swatch {kind}"></i>{html.escape(kind)}</span>' for kind in kinds)
    width = max(480.0, _LEFT + _slot(anatomy) * len(anatomy.order) + 16)
    below = 4.2 * max(map(len, anatomy.order)) + 16
    drawn = drawing(
        _names(anatomy) + pictures,
        width,
        392.0 + below,
        label="the layers of one architecture",
        key="portrait",
        fill=False,
    )
    key += '<span><i class="swatch outline"></i>largest</span>'
    return f'<div class="buttons">{buttons}<span class="key">{key}</span></div>{drawn}'
