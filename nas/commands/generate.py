"""``nas generate``: weights from a trained hypernetwork, with where they come from."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.addresses import locate
from nas.commands.boundary import UsageError
from nas.commands.sample import data_from
from nas.commands.silence import silenced
from nas.commands.tables import table
from nas.commands.trusting import packages
from nas.dataset_maker import DatasetMaker
from nas.generation import open_weight_maker
from nas.making import Request

__all__ = ["generate", "pairs"]

_PAIR = re.compile(r",(?=[\w.\-]+=)")


def generate(
    model: str,
    *,
    condition: str | None = None,
    size: str | None = None,
    out: str = "generated.safetensors",
    data: str | None = None,
    examples: int | None = None,
    count: int | None = None,
    unscored: bool = False,
    overwrite: bool = False,
    trust: list[str] | str = [],  # noqa: B006 - only read
    seed: int = 0,
) -> None:
    """Generate weights for a condition, a size or a data set, as one safetensors file with its provenance inside.

    Args:
        model: models:/NAME@alias or a folder that `nas fit` saved: a hypernetwork over conditions or data sets, or a
            supernet whose weights are generated.
        condition: values of every field of a hypernetwork, e.g. noise=0.3,decay=1e-4; vectors as code=[0.1,0.9].
        size: choices of a supernet, e.g. stage1.width=24,depth=2; width=24 is every choice called width or ending in
            .width, and what is left out is at its largest.
        out: file to write.
        data: YAML file with a `data` section: the data set that weights are sampled for, or, for other models, what
            they are evaluated on.
        examples: of each class of a data set, from its training split, that the hypernetwork sees; 5 when left out.
        count: networks to sample for a data set, of which the best on its validation split is written.
        unscored: leave out the scores of the validation and test splits.
        overwrite: replace the file.
        trust: packages of your own that the model may name, that of your model say, with commas between.
        seed: of hypernetworks that draw.

    Raises:
        GenerationError: a field is missing, unknown or out of range; nothing has been written.
        CheckpointError: the model cannot be read.
    """
    path = Path(out)
    if path.exists() and (path.is_dir() or not overwrite):
        raise UsageError(f"--out {out} exists; give another file, or --overwrite")
    wanted = "either --condition NAME=VALUE or --size CHOICE=VALUE"
    if condition is not None and size is not None:
        raise UsageError(f"nas generate needs {wanted}, not both")
    request = Request(pairs(condition, "condition"), pairs(size, "size"), seed, examples, count)
    with silenced():
        names = packages(trust)
        maker = open_weight_maker(locate(model), data=data_from(data), trust=names)
        if condition is None and size is None and not isinstance(maker, DatasetMaker):
            raise UsageError(f"nas generate needs {wanted} for {model}")
        made = maker.write(request, path, evaluate=not unscored)
    print(f"\n{table(['generated', ''], _rows(made.provenance))}\n")
    print(f"wrote {made.path} ({made.path.stat().st_size:,} bytes); hypernets.read_provenance reads the table above")


def pairs(text: str | None, option: str) -> dict[str, Any]:
    """Read ``a=1,b=[1,2],c=x`` as names and values; what is no JSON is text.

    Raises:
        UsageError: a part has no name or value, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for part in _PAIR.split(text) if text is not None else ():
        name, sign, value = part.partition("=")
        if not (name.strip() and sign and value.strip()) or name.strip() in found:
            raise UsageError(
                f"--{option} must read NAME=VALUE,NAME=VALUE with every name once, got {part!r} in {text!r}"
            )
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value.strip()
    return found


def _rows(provenance: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            rows.append([name, ""])
            rows += [[f"  {key}", _shown(item)] for key, item in value.items()]
        elif name != "format_version":
            rows.append([name, _shown(value)])
    return rows


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
