"""The benchmark runner: what it finds, prints, keeps and returns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import Result, __main__

ROOT = Path(__file__).parents[1]
GOOD = Result(({"what": "a", "figure": 1}, {"what": "longer", "figure": 0.5}), "1.00 x (asked <= 2)", True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two benchmarks and a helper in place of our own."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    for name in ("__init__", "__main__"):
        (package / f"{name}.py").write_text((ROOT / "benchmarks" / f"{name}.py").read_text())
    body = "from benchmarks import Result\ndef run(quick):\n    return Result(({'quick': quick},), 'measured', %s)\n"
    (package / "fine.py").write_text('"""Reaches what is asked."""\n' + body % True)
    (package / "poor.py").write_text('"""Falls short."""\n' + body % False)
    (package / "_shared.py").write_text("")
    return tmp_path


def run(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = os.environ | {"PYTHONPATH": str(home)}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_without_a_name_it_lists_every_benchmark_and_no_helper(home: Path) -> None:
    done = run(home)
    assert done.returncode == 0
    assert done.stdout == "fine  Reaches what is asked.\npoor  Falls short.\n"


def test_it_ends_with_a_verdict_and_an_exit_code(home: Path) -> None:
    fine, poor = run(home, "fine", "--quick"), run(home, "poor")
    assert (fine.returncode, poor.returncode) == (0, 1)
    assert fine.stdout.splitlines()[-1] == "PASS: measured"
    assert poor.stdout.splitlines()[-1] == "FAIL: measured"
    assert "shorter run" in fine.stdout
    assert "| True  |" in fine.stdout
    assert "| False |" in poor.stdout


def test_all_runs_each_and_names_those_that_fell_short(home: Path) -> None:
    done = run(home, "--all")
    assert done.returncode == 1
    assert "PASS: measured" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAIL: 1 of 2 fell short: poor"


def test_wrong_arguments_are_told(home: Path) -> None:
    unknown, both = run(home, "nothing"), run(home, "fine", "--quick", "--record")
    assert (unknown.returncode, both.returncode) == (2, 2)
    assert "no benchmark is called nothing; there are fine, poor" in unknown.stderr
    assert "leave --quick out" in both.stderr


def test_the_table_is_aligned_markdown() -> None:
    assert __main__.table(GOOD.rows).splitlines() == [
        "| what   | figure |",
        "|--------|--------|",
        "| a      | 1      |",
        "| longer | 0.5    |",
    ]


def test_recording_replaces_one_section_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(__main__, "RESULTS", results)
    monkeypatch.setattr(__main__, "summaries", lambda: {"b": "About b.", "a": "About a."})
    __main__.record("b", GOOD, 1.0)
    __main__.record("a", GOOD, 1.0)
    first = results.read_text()
    assert first.index("## a") < first.index("## b")
    __main__.record("b", Result(GOOD.rows, "3.00 x (asked <= 2)", False), 2.0)
    text = results.read_text()
    assert text.count("## ") == 2
    assert "FAIL: 3.00 x" in text
    assert text.count("PASS: 1.00 x") == 1
    assert text.partition("## b")[0] == first.partition("## b")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]


def test_every_benchmark_of_ours_says_what_it_asks() -> None:
    found = __main__.summaries()
    assert {"exactness", "thread_safety", "sandwich_step", "subnetwork_latency"} <= found.keys()
    assert all(found.values())
