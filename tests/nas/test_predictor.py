"""The predictor-guided controller: its equations one by one, and what it finds with few evaluations."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from nas.controllers import PredictorController, Problem, RandomController
from nas.controllers.beliefs import _milestone, _scalarised
from nas.controllers.features import Features
from nas.controllers.gaussian import (
    LENGTHS,
    NOISES,
    GaussianProcess,
    Hyperparameters,
    choose,
    log_expected_improvement,
    normal_scores,
)
from search_spaces import CellSpace, Choice, SearchSpace
from search_spaces.cell_graph import EDGES, expression, paths
from trials import Limit, Measurement, Metric, Trial, TrialState, hypervolume

LOSS = Metric("loss", "1", "minimize")
ACCURACY, SIZE = Metric("acc", "1", "maximize"), Metric("size", "1", "minimize")


class Toy(SearchSpace):
    def __init__(self, *choices: Choice) -> None:
        self.choices = choices

    build = inputs = None  # type: ignore[assignment]


def flat(count=6, size=6):
    return Toy(*(Choice.integer(f"c{i}", 0, size - 1) for i in range(count)))


def told(number, architecture, state=TrialState.COMPLETE, **values):
    measured = {k: Measurement(v, "1", "maximize" if k == "acc" else "minimize") for k, v in values.items()}
    return Trial(
        number=number,
        architecture=dict(architecture),
        arch_id=architecture.arch_id,
        state=state,
        measurements=measured,
        finished=float(number) if state.finished else None,
    )


def search(controller, count, measure):
    history = []
    for number in range(count):
        (architecture,) = controller.ask(1)
        state, values = measure(architecture)
        history.append(told(number, architecture, state, **values))
        controller.tell(history[-1:])
    return history


def squared(points, others):
    return np.array([[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in others] for p in points])


def test_the_posterior_is_that_of_the_joint_normal_distribution():
    rng = np.random.default_rng(0)
    seen, new, values = rng.normal(size=(6, 2)), rng.normal(size=(3, 2)), rng.normal(size=6)
    given = Hyperparameters(length=0.7, noise=0.1, mean=0.3, variance=2.0)
    joint = 2.0 * np.exp(-squared([*seen, *new], [*seen, *new]) / (2 * 0.7))
    a, b, c = joint[:6, :6] + 0.1 * 2.0 * np.eye(6), joint[6:, :6], joint[6:, 6:]
    mean, deviation = GaussianProcess(squared(seen, seen), values, given)(squared(new, seen))
    np.testing.assert_allclose(mean, 0.3 + b @ np.linalg.inv(a) @ (values - 0.3))
    np.testing.assert_allclose(deviation**2, np.diag(c - b @ np.linalg.inv(a) @ b.T))


def test_hyperparameters_have_the_highest_likelihood_of_the_grid():
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(15, 2))
    values = np.sin(4 * points[:, 0]) + 0.1 * rng.normal(size=15)
    distances = squared(points, points)
    best = (-math.inf, None)
    for length in LENGTHS:
        for noise in NOISES:
            shape = np.exp(-distances / (2 * length)) + noise * np.eye(15)
            centred = values - values.mean()
            variance = centred @ np.linalg.inv(shape) @ centred / 15
            likelihood = stats.multivariate_normal(np.full(15, values.mean()), variance * shape).logpdf(values)
            best = max(best, (likelihood, (length, noise, variance)))
    found = choose(distances, values)
    assert (found.length, found.noise) == best[1][:2]
    assert found.variance == pytest.approx(best[1][2])


def test_normal_scores_are_quantiles_of_ranks():
    expected = [stats.norm.ppf(q) for q in (0.9, 0.1, 0.4, 0.4, 0.7)]
    np.testing.assert_allclose(normal_scores(np.array([1e9, -5.0, 0.0, 0.0, 0.1])), expected, atol=1e-12)


@pytest.mark.parametrize("mean", [-1.0, 0.5, 4.0, 14.9])
def test_expected_improvement_is_the_integral(mean):
    def gain(y):
        return (0.4 - y) * stats.norm.pdf(y, mean, 2.0)

    value, _ = integrate.quad(gain, -60, 0.4, epsabs=0, epsrel=1e-9, limit=200)
    found = log_expected_improvement(np.array([mean]), np.array([2.0]), 0.4)[0]
    assert found == pytest.approx(math.log(value), abs=0.07 if mean > 10 else 1e-6)


def test_the_scalarisation_averages_to_the_hypervolume():
    ranks = np.array([[0.9, 0.2], [0.6, 0.7], [0.1, 0.95]])  # larger is better
    scores = stats.norm.ppf(1.0 - ranks)
    angles = (np.arange(4000) + 0.5) / 4000 * math.pi / 2
    best = [_scalarised(scores, np.array([math.cos(t), math.sin(t)])).max() for t in angles]
    volume = hypervolume(ranks, [0.0, 0.0], ["maximize", "maximize"])
    assert np.mean(best) * math.pi / 4 == pytest.approx(volume, rel=1e-3)
    np.testing.assert_allclose(_scalarised(np.array([[0.3], [-2.0]]), np.ones(1)), [-0.3, 2.0])


def test_milestones_grow_by_a_seventh():
    assert [_milestone(n) for n in (1, 2, 7, 14, 15, 16, 22, 24, 25)] == [1, 2, 7, 14, 14, 16, 22, 22, 25]


def test_distances_of_features():
    space = Toy(
        Choice("depth", (1, 2)),
        Choice("w1", (4, 8, 64)),
        Choice("w2", (4, 8, 64), requires=("depth", 2)),
        Choice("op", ("a", "b", "c"), kind="categorical"),
    )
    one = space.architecture({"depth": 1, "w1": 4, "op": "a"})
    other = space.architecture({"depth": 2, "w1": 8, "w2": 64, "op": "c"})
    (a, b), motifs = Features(space)([one, other])
    assert ((a - b) ** 2).sum() == pytest.approx(1 + 0.5**2 + (1 + 1) + 1)  # depth, w1, w2 and its presence, op
    assert motifs.shape == (2, 0)


def test_equal_cells_have_equal_motifs_and_alike_ones_are_close():
    space = CellSpace(10)
    first = space.from_text("|nor_conv_1x1~0|+|nor_conv_3x3~0|none~1|+|none~0|skip_connect~1|skip_connect~2|")
    second = space.from_text("|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|skip_connect~1|skip_connect~2|")
    assert first == second or space.motifs(first) == space.motifs(second)
    assert space.motifs(first) == {">nor_conv_1x1": 1, ">nor_conv_3x3": 1}
    deep = space.from_text("|nor_conv_1x1~0|+|nor_conv_3x3~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")
    features = Features(space)
    assert features([first])[1].tolist() == [[1, 1]]
    _, rows = features([first, deep])
    counts = {">avg_pool_3x3": 1, ">nor_conv_3x3>nor_conv_1x1": 1, ">nor_conv_1x1>nor_conv_1x1": 1}
    assert space.motifs(deep) == counts
    assert ((rows[0] - rows[1]) ** 2).sum() == 5


def separable(architecture):
    return TrialState.COMPLETE, {"loss": math.fsum((int(v) - 3) ** 2 for v in architecture.values())}


def test_it_finds_a_separable_optimum_in_thirty_evaluations():
    history = search(PredictorController(Problem(flat(6), (LOSS,), seed=1), parents=2, rounds=1), 30, separable)
    assert min(t.value("loss") for t in history) == 0.0


def limited(architecture):
    total = float(sum(architecture.values()))
    if total > 8.0:  # random architectures of six choices sum to 15
        return TrialState.INFEASIBLE, {"size": total}
    return TrialState.COMPLETE, {"size": total, "loss": math.fsum((int(v) - 2) ** 2 for v in architecture.values())}


def test_screened_trials_teach_where_a_limit_lies():
    problem = Problem(flat(6), (LOSS,), (Limit("size", 8.0, "max"),), seed=0)
    history = search(PredictorController(problem), 40, limited)
    assert sum(t.state is TrialState.COMPLETE for t in history[15:]) >= 15
    assert min(t.value("loss") for t in history if t.state is TrialState.COMPLETE) == 4.0


def traded(architecture):
    values = [int(v) / 5 for v in architecture.values()]
    return TrialState.COMPLETE, {"acc": sum(v**0.5 / (1 + i) for i, v in enumerate(values)), "size": sum(values)}


def test_it_covers_more_of_two_objectives_than_random_search():
    problem = Problem(flat(8), (ACCURACY, SIZE), seed=2)

    def covered(controller):
        points = [[t.value("acc"), t.value("size")] for t in search(controller, 25, traded)]
        return hypervolume(points, [0.0, 8.0], ["maximize", "minimize"])

    assert covered(PredictorController(problem, parents=2, rounds=1)) > 1.05 * covered(RandomController(problem))


def test_the_best_are_those_believed_not_the_luckiest():
    problem = Problem(flat(3), (LOSS,), (Limit("size", 20.0, "max"),), seed=3)
    controller = PredictorController(problem, start=4)
    architectures = list(problem.space.architectures())
    lucky = problem.space.architecture({"c0": 4, "c1": 1, "c2": 4})
    noise = np.random.default_rng(0).normal(0, 0.3, len(architectures))
    history = [
        told(i, a, loss=sum((int(v) - 2) ** 2 for v in a.values()) + e, size=1.0)
        for i, (a, e) in enumerate(zip(architectures, noise, strict=True))
        if a != lucky
    ]
    history += [told(900, lucky, loss=-9.0, size=1.0), told(901, problem.space.smallest(), loss=-9.0, size=30.0)]
    controller.tell(history[:3])
    assert controller.best()[0].arch_id == min(history[:3], key=lambda t: t.value("loss")).arch_id
    controller.tell(history)
    (best,) = controller.best()
    assert best != lucky
    assert all(abs(int(v) - 2) <= 1 for v in best.values())


def test_a_batch_spreads_out():
    problem = Problem(flat(2, 12), (LOSS,), seed=0)

    def bumpy(architecture):
        return told(0, architecture, loss=float(sum((int(v) - 6) ** 2 for v in architecture.values())))

    controller = PredictorController(problem, start=10)
    for number, architecture in enumerate(controller.ask(12)):
        controller.tell([told(number, architecture, loss=bumpy(architecture).value("loss"))])
    first, *rest = controller.ask(4)
    assert all(sum(abs(int(a[n]) - int(first[n])) for n in first) > 0 for a in rest)
    before = PredictorController(problem, start=10)
    assert len({first, *rest, *before.ask(1)}) == 5


@pytest.mark.parametrize("options", [{"start": 1}, {"parents": 0}, {"rounds": -1}, {"memory": 9}])
def test_bad_numbers_are_refused(options):
    with pytest.raises(ValueError, match=r"needs start >= 2, parents >= 1, rounds >= 0 and memory >= 10, got .*"):
        PredictorController(Problem(flat(), (LOSS,)), **options)


def test_old_trials_are_forgotten_beyond_the_memory():
    problem = Problem(flat(2, 12), (LOSS,), seed=0)
    controller = PredictorController(problem, memory=10, start=4)
    space = problem.space
    old = [told(i, a, loss=-100.0) for i, a in enumerate(space.architectures()) if i < 30]
    new = [told(100 + i, a, loss=float(i)) for i, a in enumerate(space.architectures()) if 100 <= i < 110]
    controller.tell(old + new)
    window = controller._history.newest(10)
    assert len(controller._believe(window, window, [])._lessons) == 10
    assert controller.ask(1)
    assert window[0].order[1] >= 100


def test_cells_that_are_one_function_have_the_same_paths():
    found: dict[str, dict[str, int]] = {}
    for cell in itertools.product(("none", "skip_connect", "nor_conv_3x3"), repeat=len(EDGES)):
        operations = dict(zip(EDGES, cell, strict=True))
        counts = found.setdefault(expression(operations, "function"), paths(operations))
        assert paths(operations) == counts
    assert len({str(sorted(counts.items())) for counts in found.values()}) > 40


def test_candidates_that_compare_equal_have_features_of_their_own():
    space = Toy(Choice("flag", (1, True, "1"), kind="categorical"))
    vectors, _ = Features(space)(list(space.architectures()))
    assert (vectors > 0).tolist() == np.eye(3, dtype=bool).tolist()


def test_features_are_the_same_once_they_have_been_forgotten():
    features, space = Features(flat(2, 60)), flat(2, 60)
    known = list(space.architectures())
    first = features(known[:3])[0].tolist()
    features(known)
    assert len(features._known) < len(known)
    assert features(known[:3])[0].tolist() == first


def test_the_memory_moves_on_in_blocks_so_that_hyperparameters_stay(monkeypatch):
    problem = Problem(flat(3, 6), (LOSS,), (Limit("size", 8.0, "max"),), seed=0)
    controller = PredictorController(problem, memory=70, start=4, parents=1, rounds=0)
    choices = []
    monkeypatch.setattr("nas.controllers.beliefs.choose", lambda d, v: choices.append(len(v)) or choose(d, v))
    history = [told(i, a, *limited(a)[:1], **limited(a)[1]) for i, a in enumerate(problem.space.architectures())]
    firsts = set()
    for item in history[:120]:
        controller.tell([item])
        window = controller._history.newest(70)
        assert window[-1].order[1] == item.number
        assert min(item.number + 1, 61) <= len(window) <= 70
        firsts.add(window[0].order[1])
    assert firsts == {0, 10, 20, 30, 40, 50}
    assert [i.order[1] for i in controller._history.newest(10**6, scored=True)] == [
        t.number for t in history[:120] if t.state is TrialState.COMPLETE
    ]
    for item in history[120:130]:
        controller.ask(1)
        controller.tell([item])
    assert len(choices) <= 2 * 4  # two models; at first, when a block is full, and at a milestone or two


def test_a_search_beyond_the_memory_goes_on_as_if_it_had_not_stopped():
    problem = Problem(flat(4), (LOSS,), (Limit("size", 8.0, "max"),), seed=5)

    def make():
        return PredictorController(problem, start=4, memory=14, parents=1, rounds=1)

    controller = make()
    history = search(controller, 45, limited)
    again = make()
    again.tell(history[::-1])
    assert again.ask(3) == controller.ask(3)
