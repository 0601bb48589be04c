"""``nas quickstart``: train, search, export and check, on the embedded digits."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import lightning as L
import torch

from nas.cli import run
from nas.commands.boundary import UsageError
from nas.commands.sample import sample
from nas.commands.sections import build_section
from nas.objectives import prepare
from nas.progress import clock
from nas.publishing import CHAMPION
from trials import StoreUnavailableError, TrialStore

__all__ = ["quickstart"]

_STORAGE = "studies.journal"
_CONFIG = "digits.yaml"
_CHECK = """
import sys, torch
model = torch.export.load(sys.argv[1] + "/model.pt2").module()
held = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    accuracy = (model(held["images"]).argmax(1) == held["labels"]).double().mean().item()
ours = {"nas", "supernets", "search_spaces", "trials", "hypernets"} & set(sys.modules)
assert not ours, ours
print(f"{accuracy:.6f}")
"""


def quickstart(out: str = "quickstart") -> int:
    """Train a supernet on the embedded digits, search it, and export the best subnetwork of 20,000 parameters.

    Args:
        out: folder that gets everything; a second quickstart in it adds another study.

    Returns:
        Exit code.

    Raises:
        UsageError: `out` cannot be written.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out must be a writable folder, got {out} ({error.strerror})") from error
    begun = time.monotonic()
    torch.set_num_threads(1)  # networks this small only lose by being divided
    with contextlib.chdir(folder):
        before = {path for path in Path().rglob("*") if path.is_file()}
        if not Path(_CONFIG).exists():
            shutil.copy(str(files("nas") / _CONFIG), _CONFIG)
        study = _free_study("digits")
        address = f"models:/{study}-supernet@{CHAMPION}"
        name = [] if study == "digits" else ["--search.study", study]
        tiny = f"{study}-tiny"
        stages: list[tuple[str, Callable[[], int | None]]] = [
            ("train a supernet", lambda: run(["fit", "-c", _CONFIG, *name])),
            ("search it", lambda: run(["search", "-c", _CONFIG, *name, "--ckpt_path", address])),
            ("export the best under 20,000 parameters", lambda: sample(address, max_params=20_000, out=tiny)),
            ("check the file without our packages", lambda: _check(tiny)),
        ]
        for number, (title, stage) in enumerate(stages, 1):
            print(f"\n=== {number}/{len(stages)} {title}", flush=True)
            code = stage()
            if code:
                return code
        written = sorted(path for path in Path().rglob("*") if path.is_file() and path not in before)
    _close(folder, written, study, time.monotonic() - begun)
    return 0


def _free_study(base: str) -> str:
    """Return ``base``, or ``base-2`` and so on when the storage has a study of that name."""
    try:
        taken = set(TrialStore.studies(_STORAGE))
    except StoreUnavailableError:
        taken = set()
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def _check(folder: str) -> int:
    """Score the exported file in a fresh Python that imports torch alone, and compare with the manifest."""
    data = build_section(Path(_CONFIG), "data", L.LightningDataModule)
    prepare(data)
    batches = list(data.test_dataloader())
    held = Path(folder) / ".check.pt"
    try:
        torch.save(
            {"images": torch.cat([batch[0] for batch in batches]), "labels": torch.cat([b[1] for b in batches])}, held
        )
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", "-c", _CHECK, folder, str(held)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        held.unlink(missing_ok=True)
    if done.returncode:
        print(f"error: the exported file cannot be used alone: {done.stderr.strip()}", file=sys.stderr)
        return 1
    alone = float(done.stdout)
    promised = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["scores"]["test"]["accuracy"]
    print(f"model.pt2 in plain PyTorch: {100 * alone:.2f} % of the test digits, promised {100 * promised:.2f} %")
    return int(abs(alone - promised) > 1e-4)


def _close(folder: Path, written: list[Path], study: str, seconds: float) -> None:
    print(f"\n=== done in {clock(seconds)}; {len(written)} files in {folder}/:")
    shown: dict[str, int] = {}
    for path in written:
        key = str(path) if path.parts[0] != "mlartifacts" else "mlartifacts/..."
        shown[key] = shown.get(key, 0) + 1
    for key, count in shown.items():
        print(f"  {key}" + (f" ({count} files)" if count > 1 else ""))
    option = "" if study == "digits" else f" --search.study {study}"
    print(
        f"\nNext, in {folder}/:\n"
        f"  mlflow ui --backend-store-uri sqlite:///mlflow.db\n"
        f"  nas sample models:/{study}-supernet@{CHAMPION} --max_params 8000 --out smaller\n"
        f"  nas report {study}\n"
        f"  nas search -c {_CONFIG}{option} --ckpt_path models:/{study}-supernet@{CHAMPION} --search.trials 200"
    )
