"""List and run benchmarks: ``python -m benchmarks [NAME ...] [--all] [--quick] [--record] [--data FOLDER]``."""

import argparse
import ast
import importlib
import inspect
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import Result

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"


def summaries() -> dict[str, str]:
    """First line of the docstring of every benchmark, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        if not path.name.startswith("_"):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = text.partition("\n")[0]
    return found


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as an aligned Markdown table."""
    header = list(rows[0])
    cells = [header, *([str(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def machine() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cores} cores ({platform.machine()}){accelerator}, {versions}"


def verdict(result: Result) -> str:
    return f"{'PASS' if result.passed else 'FAIL'}: {result.verdict}"


def record(name: str, result: Result, minutes: float) -> None:
    """Replace the section of ``name`` in the results file, or add it, in alphabetical order."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = {part.partition("\n")[0].strip(): part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}
    sections[name] = (
        f"{name}\n\n{summaries()[name]}\n\n`python -m benchmarks {name}` on {machine()}; {minutes:.1f} minutes.\n\n"
        f"{table(result.rows)}\n\n{verdict(result)}\n\n"
    )
    head = "# Results\n\nWritten by `python -m benchmarks NAME --record`.\n\n"
    body = "".join(f"## {sections[key].rstrip()}\n\n" for key in sorted(sections))
    draft = RESULTS.with_suffix(".partial")
    draft.write_text(head + body.rstrip() + "\n", encoding="utf-8")
    os.replace(draft, RESULTS)


def run(name: str, *, quick: bool, keep: bool, data: str | None = None) -> bool:
    """Run one benchmark in this process, on another folder of data if given, and print what it found."""
    print(f"{name}: {summaries()[name]}{' (quick: a shorter run, not for the record)' if quick else ''}", flush=True)
    start = time.perf_counter()
    measure = importlib.import_module(f"benchmarks.{name}").run
    result: Result = measure(quick) if data is None else measure(quick, data=data)
    print(f"\n{table(result.rows)}\n")
    if keep:
        record(name, result, (time.perf_counter() - start) / 60)
    print(verdict(result), flush=True)
    return result.passed


def takes_data(name: str) -> bool:
    """Return whether a benchmark runs on any data of its kind."""
    return "data" in inspect.signature(importlib.import_module(f"benchmarks.{name}").run).parameters


def apart(name: str, options: Sequence[str]) -> bool:
    """Run one benchmark in a process of its own, so that none inherits another's memory or thread settings."""
    return subprocess.run([sys.executable, "-m", "benchmarks", name, *options], check=False).returncode == 0


def main() -> int:
    known = summaries()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run benchmarks; without a name, list them."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="one or more of: " + ", ".join(known))
    parser.add_argument("--all", action="store_true", help="run every benchmark")
    parser.add_argument("--quick", action="store_true", help="a shorter run, which says so")
    parser.add_argument(
        "--record", action="store_true", help=f"write the figures to {RESULTS.parent.name}/{RESULTS.name}"
    )
    parser.add_argument("--data", metavar="FOLDER", help="for a benchmark that runs on any data of its kind")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.record and arguments.quick:
        parser.error("--record keeps figures of full runs only; leave --quick out")
    names = list(known) if arguments.all else arguments.names
    if not names:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {summary}" for name, summary in known.items()))
        return 0
    if arguments.data is not None and (len(names) > 1 or arguments.record or not takes_data(names[0])):
        parser.error("--data goes with one benchmark that runs on any data of its kind, and not with --record")
    if len(names) == 1:
        return 0 if run(names[0], quick=arguments.quick, keep=arguments.record, data=arguments.data) else 1
    options = [f"--{option}" for option in ("quick", "record") if getattr(arguments, option)]
    failed = []
    for name in names:
        if not apart(name, options):
            failed.append(name)
        print(flush=True)
    print(
        f"FAIL: {len(failed)} of {len(names)} fell short: {', '.join(failed)}" if failed else f"PASS: all {len(names)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
