"""What a report says beyond the trials: importance, layers, agreement, comparison of studies, commands."""

import itertools
import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from torch import nn

from nas.anatomy import anatomy, layers
from nas.costs import MACs, Parameters, materialise
from nas.findings import commands, find
from nas.importance import choice_importance
from nas.report import write_comparison, write_report
from nas.reporting import Findings, summarise
from nas.reporting.agreement import agreement_of, agreements
from nas.reporting.comparison import compare, comparison_page
from nas.reporting.page import page
from search_spaces import ConvNetSpace, MLPSpace, SearchSpace, Stage, Stem, TransformerSpace
from trials import Measurement, Metric, StudySpec, Trial, TrialState

ACCURACY = Metric("accuracy", "fraction", "maximize")
PARAMS = Metric("params", "1", "minimize")
CHOICES = {"a": (1, 2, 3), "b": ("x", "y"), "c": (False, True), "idle": (1, 2)}


def spec(name: str = "one", **more) -> StudySpec:
    return StudySpec(name, (ACCURACY, PARAMS), CHOICES, "0" * 16, **more)


def trial(number: int, architecture: dict[str, object], accuracy: float, params: float, **extra: float) -> Trial:
    measured = {
        "accuracy": Measurement(accuracy, "fraction", "maximize"),
        "params": Measurement(params, "1", "minimize"),
        **{name: Measurement(value, "fraction", "maximize") for name, value in extra.items()},
    }
    return Trial(
        number=number,
        architecture=architecture,  # type: ignore[arg-type]
        arch_id=f"{hash(tuple(architecture.values())) & (1 << 64) - 1:016x}",
        state=TrialState.COMPLETE,
        measurements=measured,
        started=1.7e9,
        finished=1.7e9 + 1,
    )


def every() -> list[Trial]:
    """The full grid of three choices with a known function: main effects of a and b, c only together with b."""
    found = []
    for number, (a, b, c) in enumerate(itertools.product(*(CHOICES[name] for name in "abc"))):
        value = 0.1 * a + 0.2 * (b == "y") + 0.05 * ((b == "y") == c)
        found.append(trial(number, {"a": a, "b": b, "c": c, "idle": 1}, value, float(100 * a)))
    return found


def test_importance_is_the_variance_of_the_main_effects():
    trials = every()
    values = np.array([one.value("accuracy") for one in trials])
    expected = {}
    for name in "abc":
        marginal = {c: values[[one.architecture[name] == c for one in trials]].mean() for c in CHOICES[name]}
        expected[name] = np.var(list(marginal.values())) / values.var()
    repeated = [replace(one, number=index) for index, one in enumerate(trials * 8)]
    found = choice_importance(spec(), repeated, "accuracy")
    assert found.keys() == {"a", "b", "c"}  # idle was never varied
    for name in "abc":  # a forest of bootstrapped trees against exact values
        assert found[name] == pytest.approx(expected[name], abs=0.02)
    assert choice_importance(spec(), repeated[::-1], "accuracy") == found


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param(every()[:9], id="few"),
        pytest.param([trial(n, {"a": 1 + n % 3}, 0.5, 1.0) for n in range(12)], id="constant"),
        pytest.param([trial(n, {"a": 1}, n / 20, 1.0) for n in range(12)], id="one candidate"),
    ],
)
def test_importance_is_not_made_up(trials):
    assert choice_importance(spec(), trials, "accuracy") == {}


def test_an_absent_choice_counts_as_a_candidate():
    trials = [
        trial(n, {"a": 1} if n % 2 else {"a": 2, "b": "x"}, 0.9 if n % 2 else 0.1, 1.0) for n in range(20)
    ]  # fmt: skip
    assert choice_importance(spec(), trials, "accuracy")["b"] > 0.2


def convnet() -> SearchSpace:
    stage = Stage(widths=(8, 16), depths=(1, 2), kernels=(3, 5), expansions=(1, 2), stride=2, block="inverted")
    return ConvNetSpace([stage], 4, in_channels=1, resolutions=(8,), stem=Stem(widths=(4, 8)))


@pytest.mark.parametrize("space", [convnet(), MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))], ids=["conv", "mlp"])
def test_layers_are_those_of_the_build_and_add_up(space):
    macs = MACs(space)
    for architecture in (space.smallest(), space.middle(), space.largest()):
        model = materialise(space, architecture)
        found = layers(space, architecture, macs)
        modules = dict(model.named_modules())
        weighted = [name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)]
        assert list(found) == weighted
        for name, layer in found.items():
            assert layer.width == modules[name].weight.shape[0]
            assert layer.params == sum(p.numel() for p in modules[name].parameters())
        assert sum(layer.macs for layer in found.values()) == macs(architecture, model)
        batch_norms = [m for m in modules.values() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        norms = sum(p.numel() for module in batch_norms for p in module.parameters())
        assert sum(layer.params for layer in found.values()) + norms == Parameters(space)(architecture, model)


def test_kinds_and_shapes_are_named():
    space = convnet()
    found = layers(space, space.largest(), MACs(space))
    depthwise = [layer for layer in found.values() if layer.kind == "depthwise"]
    assert len(depthwise) == 2
    assert {layer.shape for layer in depthwise} == {"5x5"}
    assert {layer.kind for layer in found.values()} == {"conv", "depthwise", "linear"}
    text = TransformerSpace(11, 6, widths=(8, 16), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4)
    macs = MACs(text)
    found = layers(text, text.largest(), macs)
    assert "embedding" in {layer.kind for layer in found.values()}
    assert found["blocks.0.attention"].macs > 0  # between its own linear layers
    assert sum(layer.macs for layer in found.values()) == macs(text.largest(), materialise(text, text.largest()))


def pictured(space: SearchSpace) -> tuple[list[Trial], ElementTree.Element]:
    chosen = [space.smallest(), space.largest()]
    trials = [
        replace(trial(n, {}, 0.5 + n / 10, 10.0 + n), architecture=dict(a), arch_id=a.arch_id)
        for n, a in enumerate(chosen)
    ]
    text = page(summarise(replace(spec(), choices={c.name: c.candidates for c in space.choices}), trials),
                Findings(anatomy=anatomy(space, trials)))  # fmt: skip
    found = re.search(r'<svg[^>]* id="portrait".*?</svg>', text, re.DOTALL)
    assert found is not None
    return trials, ElementTree.fromstring(found[0])


def test_picture_draws_each_subnetwork_inside_the_largest():
    space = convnet()
    trials, drawing = pictured(space)
    portraits = {int(g.get("data-portrait", "")): g for g in drawing.iter("g") if g.get("class") == "portrait"}
    assert portraits.keys() == {0, 1}
    assert [number for number, g in portraits.items() if g.get("style") != "display:none"] == [0]
    macs = MACs(space)
    largest = layers(space, space.largest(), macs)
    for one in trials:
        mine = layers(space, space.architecture(one.architecture), macs)
        tips = [rect.get("data-tip", "") for rect in portraits[one.number].iter("rect") if rect.get("data-tip")]
        assert [tip.split("\n")[0] for tip in tips] == list(largest)
        for tip, (name, full) in zip(tips, largest.items(), strict=True):
            if name in mine:
                assert f"{mine[name].width} of {full.width} wide" in tip
                assert f"{mine[name].params:,} parameters\n{mine[name].macs:,} MAC" in tip
            else:
                assert "not in this architecture" in tip
        boxes = [r for r in portraits[one.number].iter("rect") if r.get("class", "").startswith("layer")]
        heights = [float(box.get("height", "nan")) for box in boxes][-len(mine) :]
        widest = max(layer.width for layer in largest.values())
        for height, layer in zip(heights, mine.values(), strict=True):
            assert height == pytest.approx(max(4, 150 * math.sqrt(layer.width / widest)), abs=0.01)


def test_kendall_and_spearman_agree_with_their_definitions():
    rng = np.random.default_rng(3)
    x, y = rng.permutation(12) / 12, rng.permutation(12) / 12
    found = agreement_of(ACCURACY, ACCURACY, [(a, b, "", n) for n, (a, b) in enumerate(zip(x, y, strict=True))])
    assert found is not None
    pairs = list(itertools.combinations(range(12), 2))
    assert found.tau == pytest.approx(sum(np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in pairs) / len(pairs))
    squares = sum((a - b) ** 2 for a, b in zip(np.argsort(np.argsort(x)), np.argsort(np.argsort(y)), strict=True))
    assert found.rho == pytest.approx(1 - 6 * squares / (12 * (144 - 1)))


def test_a_quality_that_was_measured_twice_is_plotted_against_itself():
    trials = [trial(n, {"a": 1}, n / 20, 10.0, raw_accuracy=(n * 7 % 10) / 10) for n in range(10)]
    (pair,) = agreements(summarise(spec(), trials))
    assert (pair.x.name, pair.y.name) == ("accuracy", "raw_accuracy")
    assert [(x, y) for x, y, _, _ in pair.points] == [(n / 20, (n * 7 % 10) / 10) for n in range(10)]
    text = page(summarise(spec(), trials))
    assert f"Kendall&#x27;s tau {pair.tau:.2f}" in text
    assert 'id="agreement-accuracy-raw_accuracy"' in text
    assert list(agreements(summarise(spec(), [trial(n, {}, n / 20, 1.0) for n in range(9)]))) == []


FIRST = [trial(0, {"a": 1}, 0.5, 10.0), trial(1, {"a": 2}, 0.7, 30.0), trial(2, {"a": 3}, 0.6, 40.0)]
SECOND = [trial(0, {"a": 1}, 0.6, 10.0), trial(1, {"a": 2}, 0.65, 30.0), trial(2, {"a": 3}, 0.8, 90.0)]


def test_comparison_measures_both_from_one_reference():
    found = compare(summarise(spec("one"), FIRST), summarise(spec("two"), SECOND))
    corner = (0.5 - 0.03, 90.0 + 8.0)  # the worst of both, a tenth of the range further out
    assert found.summaries[0].reference == pytest.approx(corner)
    assert found.summaries[1].reference == pytest.approx(corner)
    box = (0.8 - corner[0]) * (corner[1] - 10)
    one = (0.5 - corner[0]) * (98 - 10) + (0.7 - 0.5) * (98 - 30)
    two = (0.6 - corner[0]) * (98 - 10) + (0.65 - 0.6) * (98 - 30) + (0.8 - 0.65) * (98 - 90)
    assert found.hypervolumes == pytest.approx((one / box, two / box))
    # (0.5, 10) and (0.7, 30) against (0.6, 10), (0.65, 30) and (0.8, 90)
    assert found.coverage == pytest.approx((1 / 3, 1 / 2))


def test_comparison_ranks_what_both_have_measured(tmp_path):
    files = write_comparison((spec("one"), FIRST), (spec("two"), SECOND), tmp_path)
    text = files["compare.html"].read_text()
    # by accuracy 1 < 3 < 2 against 1 < 2 < 3: two of three pairs agree
    assert "3 architectures are in both studies. Kendall&#x27;s tau 0.33" in text
    assert "Ranking by accuracy" in text
    assert not re.search(r"https?://|\bsrc\s*=|<link\b|@import|\burl\(", text)
    found = json.loads(files["compare.json"].read_text())
    assert [entry["study"] for entry in found["studies"]] == ["one", "two"]
    assert [entry["covers"] for entry in found["studies"]] == pytest.approx([1 / 3, 1 / 2])
    spoken = json.loads(re.search(r'id="trials">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert spoken.keys() == {f"{side}{n}" for side in "ab" for n in range(3)}


def test_three_objectives_are_compared_pair_by_pair():
    three = (ACCURACY, PARAMS, Metric("loss", "nats", "minimize"))
    both = []
    for name, trials in (("one", FIRST), ("two", SECOND)):
        measured = [
            replace(t, measurements={**t.measurements, "loss": Measurement(t.value("params") / 99, "nats", "minimize")})
            for t in trials
        ]
        both.append(summarise(replace(spec(name), objectives=three), measured))
    text = comparison_page(compare(*both))
    for title in ("params, lower is better", "accuracy, higher is better", "loss [nats], lower is better"):
        assert title in text


def test_studies_that_cannot_be_compared_are_refused():
    other = replace(spec("two"), objectives=(ACCURACY,))
    with pytest.raises(ValueError, match=r"'one' has maximize accuracy .*, minimize params .* and 'two' has maximize"):
        compare(summarise(spec("one"), FIRST), summarise(other, SECOND))
    with pytest.raises(ValueError, match=r"must have a COMPLETE trial to be compared\. Study 'two' has no trials yet"):
        compare(summarise(spec("one"), FIRST), summarise(spec("two"), []))


def test_commands_lead_on_from_the_study():
    about = {"continue": "nas search -c a.yaml --ckpt_path models:/a@champion", "supernet": "models:/a@champion"}
    found = dict(commands(summarise(spec(metadata=about), FIRST), storage="studies.journal"))
    assert found["search further"] == "nas search -c a.yaml --ckpt_path models:/a@champion --search.trials 10"
    assert found["export the best"] == "nas sample models:/a@champion --study one --out one-best"
    assert f"--architecture {FIRST[1].arch_id}" in found["export any trial"]
    there = dict(commands(summarise(spec(metadata=about), FIRST), storage="my studies.db"))
    assert there["this report anew"] == "nas report one --storage 'my studies.db'"
    assert dict(commands(summarise(spec(), []), storage="studies.journal")).keys() == {"this report anew"}
    text = page(summarise(spec(metadata=about), FIRST), Findings(commands=tuple(found.items())))
    assert "nas sample models:/a@champion --study one --out one-best" in text


def test_find_gathers_all_and_equal_studies_give_equal_pages(tmp_path):
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    question = StudySpec("mlp", (ACCURACY, PARAMS), {c.name: c.candidates for c in space.choices}, space.digest)
    trials = [
        replace(trial(n, {}, n / 20, 20.0 - n), architecture=dict(a), arch_id=a.arch_id)
        for n, a in enumerate([space.smallest(), space.largest()] * 6)
    ]
    found = find(question, trials, space, storage="studies.journal")
    assert found.importance.keys() == {"accuracy", "params"}
    assert found.anatomy is not None
    assert set(found.anatomy.trials) == {t.number for t in summarise(question, trials).front}
    again = find(question, trials[::-1], space, storage="studies.journal")
    texts = [
        write_report(question, trials, tmp_path / name, each)["pareto.html"].read_text()
        for name, each in (("a", found), ("b", again))
    ]
    assert texts[0] == texts[1]
    for key in ("importance", "portrait"):
        assert f'id="{key}"' in texts[0]
