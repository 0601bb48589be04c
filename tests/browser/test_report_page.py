"""The report in a browser: what is pointed at, dragged and clicked does what the page says."""

import json

import pytest

from nas.findings import find
from nas.report import write_comparison, write_report
from search_spaces import ConvNetSpace, Stage, Stem
from trials import Limit, Measurement, Metric, StudySpec, Trial, TrialState

pytestmark = pytest.mark.browser


def space() -> ConvNetSpace:
    stages = [
        Stage(widths=(8, 16), depths=(1, 2), kernels=(3, 5), expansions=(1, 2), stride=stride) for stride in (1, 2)
    ]
    return ConvNetSpace(stages, 4, in_channels=1, resolutions=(8,), stem=Stem(widths=(4, 8)))


def study(name: str, shift: float) -> tuple[StudySpec, list[Trial]]:
    """Forty architectures with made-up accuracies that grow with size, one that broke a limit and one that failed."""
    import torch

    from nas.costs import Parameters, measure

    net = space()
    generator = torch.Generator().manual_seed(len(name))
    architectures = list(dict.fromkeys(net.sample(generator) for _ in range(60)))[:42]
    cost = Parameters(net)
    trials = []
    for number, architecture in enumerate(architectures):
        params = measure([cost], net, architecture)["params"]
        accuracy = 0.9 + shift + 0.02 * ((params / 4000) ** 0.5) + 0.01 * ((number * 37 % 17) / 17 - 0.5)
        state = {40: TrialState.INFEASIBLE, 41: TrialState.FAILED}.get(number, TrialState.COMPLETE)
        measured = {"params": Measurement(params, "1", "minimize")}
        if state is TrialState.COMPLETE:
            measured["accuracy"] = Measurement(accuracy, "fraction", "maximize")
        trials.append(
            Trial(
                number=number,
                architecture=dict(architecture),
                arch_id=architecture.arch_id,
                state=state,
                measurements=measured,
                started=1.7e9 + number,
                finished=1.7e9 + number + 1,
                error="RuntimeError: out of memory" if number == 41 else None,
            )
        )
    spec = StudySpec(
        name,
        (Metric("accuracy", "fraction", "maximize"), Metric("params", "1", "minimize")),
        {choice.name: choice.candidates for choice in net.choices},
        net.digest,
        limits=(Limit("params", 9000, "max"),),
        metadata={"continue": f"nas search -c {name}.yaml", "supernet": f"models:/{name}-supernet@champion"},
    )
    return spec, trials


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    spec, trials = study("kites", 0.0)
    files = write_report(
        spec, trials, tmp_path_factory.mktemp("report"), find(spec, trials, space(), storage="studies.journal")
    )
    return files["pareto.html"].as_uri()


def marked(page, trial: int) -> int:
    return page.value(f"document.querySelectorAll('[data-trial=\"{trial}\"].on').length")


def test_report_asks_for_nothing_and_complains_of_nothing(page, report, photographs):
    page.open(report)
    assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []
    assert page.complaints == []
    wide = page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert wide, "the page must not scroll sideways"
    for key in ("pareto", "hypervolume", "choices", "importance", "portrait"):
        assert page.value(f"document.getElementById('{key}').getBoundingClientRect().height") > 100
    page.photograph(photographs / "report.png", selector="main")


def test_pointing_at_a_trial_tells_all_and_shows_it_everywhere(page, report, photographs):
    page.open(report)
    spoken = json.loads(page.value("document.getElementById('trials').textContent"))
    trial = page.value("Number(document.querySelector('#pareto .dot.front[data-trial]').dataset.trial)")
    page.point(*page.middle(f"#pareto [data-trial='{trial}']"))
    assert page.value("document.getElementById('tip').textContent") == spoken[str(trial)]
    assert page.value("document.getElementById('tip').getBoundingClientRect().height") > 50
    assert marked(page, trial) >= 3  # the dot, its line, its row
    assert page.value(f"document.querySelector('#choices [data-trial=\"{trial}\"]').classList.contains('on')")
    page.photograph(photographs / "report-pointed.png")
    page.point(2, 2)
    assert marked(page, trial) == 0
    assert page.value("document.getElementById('tip').style.display") == "none"


def test_dragging_along_an_axis_keeps_a_candidate(page, report, photographs):
    page.open(report)
    spec, trials = study("kites", 0.0)
    names = [name for name in spec.choices if len({t.architecture.get(name) for t in trials[:40]}) > 1]
    axis = names.index("stage1.kernel")
    x, middle = page.middle(f"#choices [data-axis='{axis}']")
    height = page.value(f"document.querySelector('#choices [data-axis=\"{axis}\"]').getBoundingClientRect().height")
    page.drag((x, middle - height / 2 + 2), (x, middle - 2))  # the upper half: the last candidate, 5
    shown = page.value(
        "[...document.querySelectorAll('#choices .lines path:not(.off)')].map((line) => Number(line.dataset.trial))"
    )
    assert set(shown) == {t.number for t in trials[:40] if t.architecture["stage1.kernel"] == 5}
    faint = page.value("[...document.querySelectorAll('#pareto .dot.off')].map((dot) => Number(dot.dataset.trial))")
    assert set(faint) == {t.number for t in trials[:40] if t.architecture["stage1.kernel"] == 3}
    page.photograph(photographs / "report-choices.png", selector="#choices", margin=16)
    page.drag((x, middle), (x, middle))
    assert page.value("document.querySelectorAll('.off').length") == 0


def test_clicking_a_trial_draws_its_architecture(page, report, photographs):
    page.open(report)
    shown = "[...document.querySelectorAll('[data-portrait]')].filter((g) => g.style.display !== 'none')"
    numbers = page.value("[...document.querySelectorAll('[data-show]')].map((b) => b.dataset.show)")
    assert page.value(f"{shown}.map((g) => g.dataset.portrait)") == numbers[:1]
    page.click(f"#pareto [data-trial='{numbers[-1]}']")
    assert page.value(f"{shown}.map((g) => g.dataset.portrait)") == numbers[-1:]
    page.click(f"[data-show='{numbers[1]}']")
    assert page.value(f"{shown}.map((g) => g.dataset.portrait)") == [numbers[1]]
    assert page.value("document.querySelector('button.chosen').dataset.show") == numbers[1]
    page.point(*page.middle(f"[data-portrait='{numbers[1]}'] .hit"))
    assert "parameters" in page.value("document.getElementById('tip').textContent")
    page.photograph(photographs / "report-architecture.png", selector="section:has(#portrait)")


def test_a_command_is_selected_for_copying(page, report):
    page.open(report)
    page.click("[data-copy]")
    assert page.value("getSelection().toString()") == page.value("document.querySelector('.command code').textContent")
    assert page.value("document.querySelector('[data-copy]').textContent") == "copied"


def test_comparison_shows_both_studies(page, tmp_path, photographs):
    files = write_comparison(study("kites", 0.0), study("gliders", 0.004), tmp_path)
    page.open(files["compare.html"].as_uri())
    assert page.complaints == []
    page.see("Two studies on one scale")
    trial = page.value("document.querySelector('#pareto .dot.front.second[data-trial]').dataset.trial")
    page.point(*page.middle(f"#pareto [data-trial='{trial}']"))
    assert page.value("document.getElementById('tip').textContent").startswith(f"gliders, trial {trial[1:]} ")
    page.photograph(photographs / "comparison.png", selector="main")


def test_report_fits_a_narrow_window(page, report):
    page.resize(420, 800)
    page.open(report)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
