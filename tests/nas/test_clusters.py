"""Searches of several machines: the commands, their settings, and the examples for clusters."""

import importlib.util
import inspect
import re
import shlex
import subprocess
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from nas import RayCluster, SearchSettings
from nas.__main__ import _LIGHT, main
from nas.trainer import NASTrainer
from trials import TrialStore

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "cluster"
GUIDE = (ROOT / "docs" / "clusters.md").read_text()
SCRATCH = (
    "  objective: {class_path: nas.FromScratch, init_args: {recipe: {class_path: nas.Recipe, init_args: {steps: 2}}}}\n"
)
_SPEC = importlib.util.spec_from_file_location("commands_fixture", Path(__file__).with_name("commands_fixture.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
FIXTURE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(FIXTURE)


@pytest.mark.cluster
def test_a_worker_joins_the_study_in_the_database_and_leaves_the_report_to_others(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The password of the address is in nothing that is printed or kept."""
    monkeypatch.chdir(tmp_path)
    config = FIXTURE.write_config(tmp_path, ("  controller", SCRATCH + "  controller"))
    url = database.replace("postgres@", "postgres:secret@")
    arguments = ["-c", config, "--search.study", "joined", f"--search.storage={url}", "--search.trials", "2"]
    assert main(["worker", *arguments]) == 0
    store = TrialStore.load(url, "joined")
    assert len(store.trials()) == 2
    assert store.spec.metadata["continue"].startswith("nas search -c ")
    assert "postgres:***@" in store.spec.metadata["continue"]
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "runs" / "joined" / "report").exists()
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if b"secret" in path.read_bytes()] == []
    assert "secret" not in "".join(capsys.readouterr())


def test_an_unreachable_database_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "any", "--storage", f"postgresql://me:secret@/db?host={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: the store of a study must be .* got postgresql://me:\*\*\*@/db\?host=.*\n", told)


def test_the_proxy_refuses_a_journal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["proxy", "studies.journal"]) == 2
    assert "the proxy needs a database behind it" in capsys.readouterr().err


def test_ray_settings_are_checked() -> None:
    assert SearchSettings(workers=2, executor="ray").ray == RayCluster()
    with pytest.raises(ValueError, match=r"search\.executor: ray needs search\.workers, .* got 0"):
        SearchSettings(executor="ray")
    with pytest.raises(ValueError, match=r"search\.ray\.gpus must be 0 or more, got -1"):
        RayCluster(gpus=-1)


def commands(text: str) -> list[list[str]]:
    """Every ``nas`` command in a text, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        shlex.split(found) for found in re.findall(r"(?:^|exec |command: >- )(nas [a-z$\"].*)$", joined, re.MULTILINE)
    ]


def check(command: list[str]) -> None:
    """The command exists, and so do its options."""
    verb = "search" if command[1] in ("$verb", "worker") else command[1]
    options = [word.partition("=")[0].removeprefix("--") for word in command[2:] if re.match("--?[a-z]", word)]
    if verb in _LIGHT:
        known = set(inspect.signature(getattr(import_module(f"nas.commands.{verb}"), verb)).parameters)
    else:
        known = {"-c", *inspect.signature(getattr(NASTrainer, verb)).parameters}
        known |= {f"search.{item.name}" for item in fields(SearchSettings)}
        known |= {f"search.ray.{item.name}" for item in fields(RayCluster)}
    assert set(options) <= known, command


def test_the_compose_file_names_commands_and_services_that_exist() -> None:
    compose = yaml.safe_load((EXAMPLES / "docker-compose.yaml").read_text())
    services = compose["services"]
    assert {"database", "mlflow", "search", "worker"} <= services.keys()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= compose["volumes"].keys()
        words = shlex.split(str(service.get("command", "")))
        if words[:1] == ["nas"]:
            check(words)
            assert (ROOT / words[words.index("-c") + 1]).exists()
    assert services["worker"]["environment"]["PGPASSWORD"] == services["database"]["environment"]["POSTGRES_PASSWORD"]


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.slurm")))
def test_slurm_scripts_are_sound(script: str) -> None:
    path = EXAMPLES / script
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = commands(path.read_text())
    assert found
    for command in found:
        check(command)


def test_the_guide_names_commands_that_exist() -> None:
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    found = [command for block in blocks for command in commands(block)]
    assert {command[1] for command in found} >= {"search", "worker", "proxy"}
    for command in found:
        check(command)
    for example in EXAMPLES.iterdir():
        assert f"examples/cluster/{example.name}" in GUIDE
