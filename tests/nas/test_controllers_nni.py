import itertools
import random

import numpy as np
import pytest
import torch
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from torch import nn

from nas.controllers import NNIController, Problem
from nas.controllers.history import History
from nas.controllers.nni import _Grid, _scalars
from search_spaces import Choice, SearchSpace
from trials import Limit, Measurement, Metric, Trial, TrialState

ONE = (Metric("loss", "1", "minimize"),)
TWO = (Metric("accuracy", "1", "maximize"), Metric("params", "1", "minimize"))
TUNERS = ("tpe", "evolution", "regularized_evolution", "random", "grid")


class Numbers(SearchSpace):
    """Some numbers from 0 to 4; nothing is built."""

    def __init__(self, count=4):
        self.choices = tuple(Choice.integer(f"c{i}", 0, 4) for i in range(count))

    def build(self, architecture):
        return nn.Identity()

    def inputs(self, architecture, batch_size=1):
        return (torch.zeros(batch_size, 1),)


def trial(number, architecture, state=TrialState.COMPLETE, **values):
    return Trial(
        number=number,
        architecture=dict(architecture),
        arch_id=architecture.arch_id,
        state=state,
        measurements={
            name: Measurement(value, "1", "maximize" if name == "accuracy" else "minimize")
            for name, value in values.items()
        },
        finished=float(number) if state.finished else None,
    )


def bowl(number, architecture):
    return trial(number, architecture, loss=float(sum((value - 3) ** 2 for value in architecture.values())))


def search(controller, evaluations, evaluate=bowl):
    history = []
    for number in range(evaluations):
        [architecture] = controller.ask(1)
        history.append(evaluate(number, architecture))
        controller.tell(history[-1:])
    return history


def samples(space, count):
    generator = torch.Generator().manual_seed(1)
    return list(dict.fromkeys(space.sample(generator) for _ in range(2 * count)))[:count]


@pytest.mark.parametrize("tuner", TUNERS)
def test_global_random_states_are_as_they_were(tuner):
    states = random.getstate(), np.random.get_state()[1].tolist()
    search(NNIController(Problem(Numbers(), ONE), tuner=tuner), 22)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("tuner", TUNERS)
def test_proposals_do_not_depend_on_global_random_states(tuner):
    asked = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        asked.append([t.arch_id for t in search(NNIController(Problem(Numbers(), ONE), tuner=tuner), 23)])
    assert asked[0] == asked[1]


@pytest.mark.parametrize("tuner", ["tpe", "evolution", "regularized_evolution"])
def test_tuners_learn(tuner):
    controller = NNIController(Problem(Numbers(6), ONE, seed=3), tuner=tuner)
    losses = [t.value("loss") for t in search(controller, 90)]
    assert sum(losses[-30:]) < 0.7 * sum(losses[:20]) * 30 / 20


@pytest.mark.parametrize("tuner", ["tpe", "evolution", "regularized_evolution"])
def test_limits_are_learnt_from_trials_without_objectives(tuner):
    def screened(number, architecture):
        total = float(sum(architecture.values()))
        if total > 8.0:  # a random one sums to 12
            return trial(number, architecture, TrialState.INFEASIBLE, params=total)
        return trial(
            number, architecture, params=total, loss=sum((value - 1.0) ** 2 for value in architecture.values())
        )

    problem = Problem(Numbers(6), ONE, (Limit("params", 8.0, "max"),), seed=2)
    states = [t.state for t in search(NNIController(problem, tuner=tuner), 60, screened)]
    assert states[:20].count(TrialState.COMPLETE) <= 6
    assert states[-30:].count(TrialState.COMPLETE) >= 12


@pytest.mark.parametrize("tuner", ["evolution", "regularized_evolution"])
def test_more_may_be_evaluated_than_the_population_holds(tuner):
    controller = NNIController(Problem(Numbers(), ONE), tuner=tuner, tuner_args={"population_size": 3})
    controller.tell([bowl(number, a) for number, a in enumerate(samples(Numbers(), 4))])
    assert len(set(controller.ask(20))) == 20


def test_the_first_points_of_a_grid_hold_all_candidates_and_all_pairs():
    asked = NNIController(Problem(Numbers(), ONE, seed=5), tuner="grid").ask(25)
    names = list(asked[0])
    assert all({architecture[name] for architecture in asked[:5]} == {0, 1, 2, 3, 4} for name in names)
    for first, second in itertools.combinations(names, 2):
        assert len({(architecture[first], architecture[second]) for architecture in asked}) == 25
    assert NNIController(Problem(Numbers(), ONE, seed=6), tuner="grid").ask(25) != asked


def test_a_grid_of_any_sizes_holds_every_point_once():
    sizes = {"a": 2, "b": 6, "c": 4, "d": 3, "e": 1}
    grid = _Grid(1, [Choice.integer(name, 1, size) for name, size in sizes.items()])
    points = [tuple(point[name] for name in sizes) for point in grid]
    assert sorted(points) == list(itertools.product(*map(range, sizes.values())))
    assert all(len({point[place] for point in points[:6]}) == size for place, size in enumerate(sizes.values()))


def test_a_grid_goes_on_where_it_stopped():
    problem = Problem(Numbers(3), ONE, seed=2)
    whole = NNIController(problem, tuner="grid").ask(125)
    assert len(set(whole)) == 125
    again = NNIController(problem, tuner="grid")
    again.tell([bowl(number, architecture) for number, architecture in enumerate(whole[:60])])
    assert again.ask(65) == whole[60:]


def test_tpe_is_the_tuner_of_nni_told_the_whole_history():
    space = Numbers()
    controller = NNIController(Problem(space, ONE, seed=9), tuner_args={"tpe_args": {"n_startup_jobs": 5}})
    history = [bowl(number, architecture) for number, architecture in enumerate(samples(space, 30))]
    controller.tell(history)
    generator = controller._history.generator()
    seed = int(torch.randint(2**31, (), generator=generator))
    theirs = TpeTuner("minimize", seed=seed, tpe_args={"n_startup_jobs": 5})
    theirs.update_search_space({f"c{i}": {"_type": "choice", "_value": [0, 1, 2, 3, 4]} for i in range(4)})
    for number, item in enumerate(history):
        theirs.generate_parameters(number)
        theirs._running_params[number] = {(name,): value for name, value in item.architecture.items()}
        theirs.receive_trial_result(number, None, item.value("loss"))
    theirs.rng = np.random.default_rng(seed)
    theirs.dedup = lambda parameters: parameters
    [asked] = controller.ask(1)
    assert dict(asked) == theirs.generate_parameters(99)


def test_regularized_evolution_changes_one_choice_of_the_best_of_the_youngest():
    space = Numbers()
    arguments = {"population_size": 3, "sample_size": 50}
    controller = NNIController(Problem(space, ONE), tuner="regularized_evolution", tuner_args=arguments)
    told = samples(space, 6)
    losses = [0.0, 9.0, 8.0, 5.0, 4.0, 6.0]  # the best one is too old
    controller.tell([trial(i, a, loss=loss) for i, (a, loss) in enumerate(zip(told, losses, strict=True))])
    [asked] = controller.ask(1)
    assert sum(asked[name] != told[4][name] for name in asked) <= 2  # twice mutated where NNI changed nothing


def test_evolution_keeps_the_better_of_two_and_changes_one_choice():
    space = Numbers()
    controller = NNIController(Problem(space, ONE), tuner="evolution", tuner_args={"population_size": 2})
    best, other = space.architecture(dict.fromkeys(("c0", "c1", "c2", "c3"), 3)), space.smallest()
    controller.tell([bowl(0, other), bowl(1, best)])
    [asked] = controller.ask(1)
    assert sum(asked[name] != best[name] for name in asked) <= 2


def test_values_are_the_augmented_chebyshev_of_parego_and_broken_limits_rank_last():
    problem = Problem(Numbers(), TWO, (Limit("params", 50.0, "max"),))
    history = History(problem)
    told = samples(problem.space, 5)
    points = [(0.2, 10.0), (0.6, 30.0), (1.0, 50.0), (0.9, 100.0)]
    history.tell([trial(i, a, accuracy=x, params=y) for i, (a, (x, y)) in enumerate(zip(told, points, strict=False))])
    history.tell([trial(4, told[4], TrialState.INFEASIBLE, params=75.0)])
    values = _scalars(problem, history.lessons(), np.random.default_rng(7))
    first, second = np.random.default_rng(7).dirichlet([1.0, 1.0])
    for value, (accuracy, params) in zip(values, points[:3], strict=False):
        terms = [first * (1.0 - accuracy) / 0.8, second * (params - 10.0) / 40.0]  # each over its range
        assert value == pytest.approx(max(terms) + 0.05 * sum(terms))
    assert values[3:] == pytest.approx([2.0 + 1.0, 2.0 + 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "annealing"}, r"tuner must be one of \['evolution', .*'tpe'\], got 'annealing'$"),
        ({"tuner": "gp"}, "got 'gp': NNI's GPTuner takes numeric spaces only"),
        ({"tuner": "bohb"}, "got 'bohb': it needs ConfigSpace"),
        ({"tuner_args": {"seed": 3}}, r"must not contain \['seed'\]: seeds and directions come from the problem"),
        ({"tuner_args": {"tpe_args": {"gama": 0.1}}}, "tuner_args of 'tpe': .*gama.* NNI's TpeTuner takes"),
        ({"tuner": "grid", "tuner_args": {"step": 2}}, "tuner_args of 'grid': .*step"),
        ({"tuner": "evolution", "tuner_args": {"population_size": 1}}, "an integer of at least 2, got 1"),
        ({"tuner": "regularized_evolution", "tuner_args": {"sample_size": 0}}, "sample_size must be .* 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NNIController(Problem(Numbers(), ONE), **options)
