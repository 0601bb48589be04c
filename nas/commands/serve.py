"""``nas serve``: subnetworks over HTTP."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from nas.commands.boundary import UsageError
from nas.commands.silence import silenced
from nas.commands.trusting import packages

__all__ = ["serve"]

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    *supernets: str,
    host: str = "127.0.0.1",
    port: int = 8008,
    token_file: str | None = None,
    insecure: bool = False,
    workers: int = 1,
    study: str | None = None,
    storage: str = "studies.journal",
    data: str | None = None,
    folder: str = "runs/service",
    cache_bytes: float = 1e9,
    max_body: float = 1e6,
    threads: int = 2,
    queue: int = 64,
    timeout: float = 30.0,
    stall: float = 20.0,
    rate: float | None = None,
    reload: float = 10.0,
    trust: list[str] | str = [],  # noqa: B006 - only read
) -> None:
    """Serve subnetworks of trained supernets over HTTP, until Ctrl-C.

    On another host than this machine itself, clients must show a token: the content of --token_file, or of the
    environment variable NAS_SERVICE_TOKEN.

    Args:
        supernets: models:/NAME@alias, a folder that `nas fit` saved, or a .ckpt file; NAME=ADDRESS names it.
        host: address to listen on.
        port: port to listen on.
        token_file: file that holds the token which clients must show.
        insecure: listen beyond this machine without a token.
        workers: processes; each loads every supernet.
        study: answer from this study only.
        storage: where studies live: a journal file, or an Optuna database URL.
        data: YAML file with a `data` section, for checkpoints that do not name their data.
        folder: for the cache of weights and the jobs; processes may share it.
        cache_bytes: bound on the cache.
        max_body: bytes of a request.
        threads: that compute, in each process.
        queue: computations that may wait; more are refused.
        timeout: seconds that a request may wait for a computation.
        stall: seconds that a client may take to send a request, or to take in a piece of the answer.
        rate: requests per second and client address; no limit by default.
        reload: seconds between looks for a newer version of the supernets and their studies.
        trust: packages of your own that a supernet may name, that of your model say, with commas between.

    Raises:
        UsageError: a supernet does not exist, or the host needs a token.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"nas serve needs {', '.join(missing)}; run `pip install 'weightloom[service]'`")
    from nas.service.server import is_loopback, serve_forever
    from nas.service.settings import TOKEN, ServiceSettings

    token = os.environ.get(TOKEN) if token_file is None else _read_token(Path(token_file))
    if token is None and not is_loopback(host) and not insecure:
        raise UsageError(
            f"--host {host} can be reached from other machines and needs a token: give --token_file or {TOKEN}, or say "
            "--insecure to let anybody in"
        )
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    settings = ServiceSettings(
        models=tuple(supernets),
        study=study,
        storage=storage,
        data=data,
        trust=tuple(packages(trust)),
        folder=folder,
        cache_bytes=int(cache_bytes),
        max_body=int(max_body),
        threads=threads,
        queue=queue,
        timeout=timeout,
        stall=stall,
        rate=rate,
        reload=reload,
        token=token,
    )
    with silenced():
        for offer in settings.offers:
            located = offer.locate()
            print(f"[serve] {offer.name}: {located.path}", file=sys.stderr)
        print(f"[serve] http://{host}:{port}/docs, {'with' if token else 'without'} a token", file=sys.stderr)
        serve_forever(settings, host=host, port=port, workers=workers)


def _read_token(path: Path) -> str:
    """Return the first line of the file.

    Raises:
        UsageError: there is none.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise UsageError(f"--token_file must hold the token in its first line, but {path} is empty")
    return lines[0].strip()
