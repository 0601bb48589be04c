"""One line out of many, for every mistake that a user can make in a YAML file or on the command line."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from nas.__main__ import main
from nas.commands.boundary import guarded, one_line
from nas.commands.messages import shorten
from nas.commands.tables import amount, table
from nas.progress import Progress, clock

ROOT = Path(__file__).resolve().parents[2]
NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'supernets.Supernet':
        Parser key "space":
          Problem with given class_path 'search_spaces.MLPSpace':
            Option 'widht' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'supernets.Supernet'}"""

WORD = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'supernets.Supernet':
        Parser key "optimizer":
          Type typing.Callable[[Iterable], Optimizer] expects a function or a callable class: Parser key "lr":

            - Expected a path but fast either not accessible or invalid
            - Does not validate against any of the Union subtypes
            Subtypes: [<class 'float'>, <class 'torch.Tensor'>]
            Errors:
              - Expected a <class 'float'>
              - Expected a dot import path string: fast
            Given value type: <class 'str'>
            Given value: fast. Got value: Namespace(class_path='torch.optim.Adam', init_args=Namespace(lr='fast'))
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'supernets.Supernet'}"""


@pytest.mark.parametrize(
    ("message", "known", "expected"),
    [
        (NESTED, (), "model.space: widht is not an option of search_spaces.MLPSpace; did you mean widths?"),
        (
            "Group 'search' does not accept option 'trails'",
            ("search.trials", "search.study"),
            "search.trails is not an option; did you mean trials?",
        ),
        (
            'Parser key "model.source":\n  Type x expects a function or a callable class: Parser key "routing":\n'
            "    Expected a typing.Literal['layer', 'neuron']. Got value: tensor. Got value: "
            "Namespace(class_path='supernets.MixtureWeights', init_args=1)",
            (),
            "model.source.routing: Expected a Literal['layer', 'neuron'], got tensor",
        ),
        ("Option 'mdel.init_args' is not accepted", ("model", "data"), "mdel is not an option; did you mean model?"),
        ("unrecognized arguments: --max_parms 3", ("max_params",), "--max_parms is not an option; did you mean"),
        ("Parser key \"search.trials\":\n  Expected a <class 'int'>. Got value: three", (), "got three"),
        (
            "Parser key \"data\":\n  Problem with given class_path 'nas.data.DigtsData':\n"
            "    module 'nas.data' has no attribute 'DigtsData'",
            (),
            "data: nas.data has no DigtsData; did you mean DigitsData?",
        ),
        (
            'Parser key "search.controller":\n  Type x expects a function or a callable class: Option '
            "'population' is not accepted. Got value: Namespace(class_path='nas.EvolutionController', init_args=1)",
            (),
            "population is not an option of nas.EvolutionController; did you mean population_size?",
        ),
        (WORD, (), "model.optimizer.lr: Expected a float, got fast"),
        ("plain words\nof another kind", (), "plain words"),
    ],
)
def test_a_message_is_one_line_that_names_the_option(message: str, known: tuple[str, ...], expected: str) -> None:
    short = shorten(message, known)
    assert "\n" not in short
    assert expected in short


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a\n  b"), "a b"),
        (FileNotFoundError(2, "No such file", "x.yaml"), "x.yaml: No such file"),
        (OSError(errno.ENOSPC, "No space left"), "No space left (/"),
        (KeyError("no such thing"), "no such thing"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_are_told_on_one_line(error: Exception, expected: str) -> None:
    assert one_line(error).startswith(expected)


def test_a_mistake_is_exit_code_2_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake() -> int:
        raise ValueError("field must be positive, got -1")

    assert guarded(mistake) == 2
    assert capsys.readouterr().err == "error: field must be positive, got -1\n"
    monkeypatch.setenv("NAS_TRACEBACK", "1")
    assert guarded(mistake) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def defect() -> int:
        raise AttributeError("oops")

    with pytest.raises(AttributeError, match="oops"):
        guarded(defect)


def test_interruption_is_130() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for command in (
        "fit",
        "validate",
        "test",
        "search",
        "profile",
        "sample",
        "export",
        "generate",
        "zoo",
        "report",
        "quickstart",
    ):
        assert f"  {command} " in text


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serch"]) == 2
    assert "'serch' is not a command; the commands are fit, validate" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_lightning_and_is_quick() -> None:
    code = (
        "import sys, time; sys.argv = ['nas', '--help']\n"
        "from nas.__main__ import main\n"
        "assert main() == 0\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'optuna', 'jsonargparse'} & set(sys.modules)))\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, modules, seconds = done.stdout.splitlines()
    assert modules == "[]"
    assert float(seconds) < 1.0  # of the processor; a thirtieth of that as a rule


def test_a_table_is_aligned() -> None:
    assert table(["a", "b"], [["x", "10"], ["long", "5"]]).splitlines() == [
        "a      b",
        "----  --",
        "x     10",
        "long   5",
    ]
    assert amount(0.5, "fraction") == "50.00 %"
    assert amount(18426.0) == "18,426"
    assert amount(0.08321, "nats") == "0.08321 nats"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_outside_a_terminal_is_a_few_lines() -> None:
    stream = io.StringIO()
    progress = Progress("fit", 100, "steps", stream=stream)
    for done in range(1, 101):
        progress.update(done, "loss 1")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-1].startswith("[fit] 100/100 steps, loss 1, took 00:0")


def test_progress_in_a_terminal_rewrites_one_line_and_ends_it() -> None:
    stream = Terminal()
    progress = Progress("search", 2, "trials", stream=stream)
    progress.update(1, "a long detail that is gone later")
    progress.update(2)
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "█" in text
    assert clock(3700) == "1:01:40"
