"""Writes the golden files of the present format: ``PYTHONPATH=.:tests/trials python tests/trials/golden/make.py``."""

import json
from pathlib import Path

from studies import arch_id, architectures, begin, complete, outcome, spec

from trials import Outcome, TrialState, TrialStore

HERE = Path(__file__).resolve().parent


def main():
    journal = HERE / "v1.journal"
    journal.unlink(missing_ok=True)
    finished = 1_700_000_000.5
    with TrialStore(str(journal), spec("golden", reference=(0.0, 200.0)), runs=HERE) as store:
        store.worker = type(store.worker)("golden-host", 1, 1.0)
        complete(store, architectures()[0], finished=finished)
        complete(store, {"width": 32, "depth": 2}, finished=finished)
        failing = begin(store, architectures()[2], provenance={"weights": "w0"})
        store.finish(failing.with_outcome(Outcome(state=TrialState.FAILED, error="Traceback", finished=finished)))
        free = architectures()[3]
        store.record(free, arch_id(free), outcome(free, finished=finished))
        begin(store, architectures()[4])
    with TrialStore(str(journal), spec("golden", reference=(0.0, 200.0)), runs=HERE) as store:
        expected = {
            "trials": [trial.to_dict() for trial in store.trials()],
            "interrupted": [trial.number for trial in store.interrupted()],
            "next_attempt": 0,
        }
    (HERE / "v1.json").write_text(json.dumps(expected, indent=1) + "\n")
    journal.with_name("v1.journal.flock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
