"""The guide does what it says: its commands and its Python run against a service, in order."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from safetensors.torch import load_file

from nas import DatasetSampler, save_sampler
from tests.programs import Done, run_code

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "service.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
DEFAULT = "http://127.0.0.1:8008"


def run_shell(program: str, folder: Path) -> Done:
    command = ["bash", "-euo", "pipefail", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_its_commands_and_snippets_run_in_order(
    studied: Any, launch: Any, trained: Any, sampler: DatasetSampler, tmp_path: Path
) -> None:
    save_sampler(sampler, tmp_path / "sampler")
    models = (f"digits-supernet={trained.folder}", f"digits-sampler={tmp_path / 'sampler'}")
    running = launch(models=models, storage=str(trained.storage))
    printed = ""
    for language, text in BLOCKS:
        assert language in ("bash", "python", "sh", "text")
        if language not in ("bash", "python"):
            continue
        program = text.replace(DEFAULT, running.url)
        if language == "python":
            done = run_code(program, folder=tmp_path, scratch=tmp_path / "outputs")
        else:
            done = run_shell(program, tmp_path)
        assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert '"name":"digits-supernet"' in printed
    assert '"outputs":[[' in printed
    assert "max_params=1 cannot be met" in printed
    assert load_file(tmp_path / "sampled.safetensors").keys() == load_file(tmp_path / "chosen.safetensors").keys()
    assert load_file(tmp_path / "tiny.safetensors").keys() == load_file(tmp_path / "best.safetensors").keys()


def test_it_names_every_route_code_and_option(studied: Any) -> None:
    import inspect

    from nas.commands.serve import serve

    described = requests.get(f"{studied.url}/openapi.json", timeout=100).json()["paths"]
    for path in described:
        parts = [re.escape(part) if not part.startswith("{") else r"[\w\"${}-]+" for part in path.split("/")]
        assert re.search("/".join(parts), GUIDE), path
    codes = {code for methods in described.values() for found in methods.values() for code in found["responses"]}
    for code in codes - {"200", "400"}:
        assert code in GUIDE, code
    defaults = {name: item.default for name, item in inspect.signature(serve).parameters.items()}
    assert f"http://{defaults['host']}:{defaults['port']}" == DEFAULT
    for option in re.findall(r"--(\w+)", GUIDE):
        assert option in defaults, option


def test_its_page_needs_no_other_machine(studied: Any) -> None:
    answer = requests.get(f"{studied.url}/docs", timeout=100)
    assert "<details" in answer.text or 'make("details"' in answer.text
    assert re.findall(r"https?://[\w.]+|src=|@import", answer.text) == []
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; connect-src 'self'" in policy
    assert requests.get(f"{studied.url}/redoc", timeout=100).status_code == 404
