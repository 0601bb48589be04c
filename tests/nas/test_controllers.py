import functools
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from optuna.samplers import TPESampler
from scipy.stats import qmc
from torch import nn

from nas.controllers import (
    CoarseToFineController,
    Controller,
    EvolutionController,
    NNIController,
    OptunaController,
    PredictorController,
    Problem,
    RandomController,
)
from nas.controllers.history import History
from search_spaces import Choice, InvalidArchitectureError, SearchSpace, derive_seed
from trials import Limit, Measurement, Metric, Trial, TrialState, hypervolume

ONE = (Metric("loss", "1", "minimize"),)
TWO = (Metric("accuracy", "1", "maximize"), Metric("params", "1", "minimize"))


class ToySpace(SearchSpace):
    def __init__(self, *choices):
        self.choices = choices

    def build(self, architecture):
        return nn.Identity()

    def inputs(self, architecture, batch_size=1):
        return (torch.zeros(batch_size, 1),)


def flat(dimensions=6, size=6):
    return ToySpace(*(Choice.integer(f"c{i}", 0, size - 1) for i in range(dimensions)))


def conditional():
    """Depth, the width of each layer it has, and an operation: 3 * (2 + 4 + 8) architectures."""
    return ToySpace(
        Choice("depth", (1, 2, 3)),
        *(Choice(f"layer{i}.width", (4, 8), requires=("depth", i)) for i in (1, 2, 3)),
        Choice("op", ("add", "cat", "max"), kind="categorical"),
    )


def three():
    return ToySpace(Choice("op", ("a", "b", "c"), kind="categorical"), Choice("fixed", (7,)))


CONTROLLERS: dict[str, Callable[[Problem], Controller]] = {
    "random": RandomController,
    "nsga2": functools.partial(EvolutionController, population_size=6),
    "regularized": functools.partial(EvolutionController, population_size=6, method="regularized"),
    "coarse": functools.partial(CoarseToFineController, coarse=8, skeletons=2),
    "nni": functools.partial(NNIController, tuner_args={"tpe_args": {"n_startup_jobs": 5}}),
    "nni_evolution": functools.partial(NNIController, tuner="evolution", tuner_args={"population_size": 6}),
    "nni_regularized": functools.partial(
        NNIController, tuner="regularized_evolution", tuner_args={"population_size": 6}
    ),
    "nni_random": functools.partial(NNIController, tuner="random"),
    "nni_grid": functools.partial(NNIController, tuner="grid"),
    "predictor": functools.partial(PredictorController, start=12, parents=2, rounds=1),
    "optuna": OptunaController,
    "optuna_nsga2": functools.partial(OptunaController, sampler="nsga2", sampler_args={"population_size": 6}),
    "optuna_callable": functools.partial(OptunaController, sampler=TPESampler, sampler_args={"n_startup_trials": 5}),
}
each_controller = pytest.mark.parametrize("make", CONTROLLERS.values(), ids=CONTROLLERS)


def score(architecture):
    """Any deterministic number that depends on every choice."""
    return derive_seed(architecture.to_json()) / 2**63


def trial(number, architecture, state=TrialState.COMPLETE, finished=None, **values):
    maximized = {"accuracy"}
    return Trial(
        number=number,
        architecture=dict(architecture),
        arch_id=architecture.arch_id,
        state=state,
        measurements={
            name: Measurement(v, "1", "maximize" if name in maximized else "minimize") for name, v in values.items()
        },
        finished=finished if state.finished else None,
    )


def evaluate(number, architecture):
    """A little of everything: complete, failed, infeasible by cost with and without the objective."""
    values = {"loss": score(architecture), "params": 10.0 * len(architecture)}
    if number % 5 == 1:
        return trial(number, architecture, TrialState.FAILED, finished=float(number))
    if number % 5 == 3:
        return trial(number, architecture, TrialState.INFEASIBLE, finished=float(number), params=60.0 + number)
    return trial(number, architecture, finished=float(number), **values)


def search(controller, evaluations, evaluate=evaluate, batch=1):
    history: list[Trial] = []
    while len(history) < evaluations:
        asked = controller.ask(min(batch, evaluations - len(history)))
        if not asked:
            break
        told = [evaluate(len(history) + i, architecture) for i, architecture in enumerate(asked)]
        controller.tell(told)
        history += told
    return history


@each_controller
@pytest.mark.parametrize("make_space", [flat, conditional])
def test_proposals_are_valid_new_and_distinct(make, make_space):
    space = make_space()
    controller = make(Problem(space, ONE, (Limit("params", 50.0, "max"),), seed=3))
    history = search(controller, 40, batch=3)
    assert len(history) == 40
    assert len({t.arch_id for t in history}) == 40
    assert all(space.contains(t.architecture) for t in history)
    assert controller.ask(0) == []


@each_controller
@pytest.mark.parametrize("make_space", [three, conditional])
def test_small_space_is_searched_completely_then_exhausted(make, make_space):
    space = make_space()
    controller = make(Problem(space, ONE))
    history = search(controller, 10_000, batch=4)
    assert {t.arch_id for t in history} == {a.arch_id for a in space.architectures()}
    assert len(history) == space.size()
    assert controller.ask(5) == []


@each_controller
def test_told_architectures_of_others_are_never_proposed(make):
    space = three()
    controller = make(Problem(space, ONE))
    first, second, third = space.architectures()
    controller.tell([trial(7, first, TrialState.RUNNING), trial(4, second, TrialState.FAILED)])
    assert controller.ask(3) == [third]


@each_controller
def test_replayed_history_gives_the_same_next_proposals(make):
    problem = Problem(conditional(), ONE, (Limit("params", 50.0, "max"),), seed=11)
    controller = make(problem)
    history = search(controller, 23, batch=2)
    running = [trial(100 + i, architecture, TrialState.RUNNING) for i, architecture in enumerate(controller.ask(2))]
    controller.tell(running)
    again = make(problem)
    again.tell(running + history[::-1])
    expected = controller.ask(4)
    assert again.ask(4) == expected
    one_by_one = make(problem)
    for item in history + running:
        one_by_one.tell([item])
    assert [one_by_one.ask(1)[0] for _ in range(4)] == expected
    other = make(Problem(problem.space, ONE, problem.limits, seed=12))
    assert other.ask(4) != make(problem).ask(4)


@each_controller
def test_order_of_tells_does_not_matter_and_repeats_change_nothing(make):
    problem = Problem(flat(), ONE, (Limit("params", 50.0, "max"),), seed=5)
    history = search(RandomController(problem), 20)
    orders = [history, history[::-1], history[::2] + history[1::2], history + history]
    controllers = [make(problem) for _ in orders]
    for controller, order in zip(controllers, orders, strict=True):
        for item in order:
            controller.tell([item])
    asked = [controller.ask(3) for controller in controllers]
    assert all(answer == asked[0] for answer in asked)


@each_controller
def test_late_tells_and_several_asks_before_a_tell(make):
    controller = make(Problem(flat(), ONE, seed=5))
    asked = [architecture for _ in range(5) for architecture in controller.ask(3)]
    assert len(set(asked)) == 15
    told = [evaluate(i, architecture) for i, architecture in enumerate(asked)]
    controller.tell(told[10:])
    more = controller.ask(2)
    controller.tell(told[:3])
    more += controller.ask(2)
    assert len(set(asked) | set(more)) == 19


@each_controller
def test_trials_are_never_changed(make):
    problem = Problem(flat(), ONE, (Limit("params", 50.0, "max"),))
    controller = make(problem)
    history = search(RandomController(problem), 12)
    before = [item.to_json() for item in history]
    controller.tell(history)
    controller.ask(3)
    assert [item.to_json() for item in history] == before


@each_controller
def test_ask_leaves_global_random_state_alone(make):
    state = torch.get_rng_state()
    search(make(Problem(flat(), ONE)), 12)
    assert torch.equal(state, torch.get_rng_state())


@each_controller
def test_foreign_trial_is_refused_before_anything_is_learnt(make):
    space, other = three(), flat()
    controller = make(Problem(space, ONE))
    good = trial(0, next(space.architectures()), loss=1.0)
    with pytest.raises(InvalidArchitectureError, match="is not a choice of this space"):
        controller.tell([good, trial(1, other.smallest(), loss=1.0)])
    assert len(controller.ask(3)) == 3


@each_controller
def test_negative_count_is_refused(make):
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        make(Problem(three(), ONE)).ask(-1)


def test_problem_needs_distinct_objectives():
    with pytest.raises(ValueError, match=r"one or more metrics with distinct names, got \[\]"):
        Problem(three(), ())
    with pytest.raises(ValueError, match="distinct names, got"):
        Problem(three(), ONE + ONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 1}, "population_size must be 2 or more, got 1"),
        ({"mutation_probability": 1.5}, "mutation_probability must be between 0 and 1, got 1.5"),
        ({"crossover_probability": -0.1}, "crossover_probability must be between 0 and 1, got -0.1"),
        ({"tournament": 0}, "tournament must be between 1 and population_size=32, got 0"),
        ({"method": "genetic"}, "method must be 'nsga2' or 'regularized', got 'genetic'"),
        ({"method": "regularized"}, "needs exactly one objective, got .*accuracy.*params"),
    ],
)
def test_evolution_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EvolutionController(Problem(flat(), TWO), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "annealing"}, "sampler must be one of .*'tpe'.* got 'annealing'"),
        ({"sampler": "optuna.samplers.Absent"}, "or an import path"),
        ({"sampler": "tpe", "sampler_args": {"population": 3}}, "sampler_args of 'tpe': .*population"),
        ({"sampler": "tpe", "sampler_args": {"seed": 3}}, "must not contain 'seed'"),
        ({"budget": 0}, r"OptunaController\.budget must be >= 1, or null, got 0"),
        ({"sampler": dict}, "sampler_args of .*dict.*: no signature found"),
        ({"sampler": "fractions.Fraction"}, "must make an Optuna sampler, got Fraction"),
    ],
)
def test_optuna_refuses_bad_samplers(options, message):
    with pytest.raises(ValueError, match=message):
        OptunaController(Problem(flat(), ONE), **options)


@pytest.mark.parametrize(
    "sampler", ["nsga3", "random", "optuna.samplers.QMCSampler", "optuna.samplers.BruteForceSampler"]
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_any_optuna_sampler_makes_progress_with_two_objectives(sampler):
    space = conditional()
    controller = OptunaController(Problem(space, TWO), sampler=sampler)
    history = search(controller, 25, lambda i, a: trial(i, a, accuracy=score(a), params=float(len(a))))
    assert len({t.arch_id for t in history}) == 25


def test_gaussian_process_respects_limits_with_screened_trials():
    space = flat(dimensions=4, size=8)
    problem = Problem(space, ONE, (Limit("params", 12.0, "max"),), seed=1)
    controller = OptunaController(problem, sampler="gp", sampler_args={"n_startup_trials": 8})
    history = search(controller, 12, constrained)
    assert len({t.arch_id for t in history}) == 12
    assert sum(t.state is TrialState.COMPLETE for t in history[8:]) >= 3


SAMPLERS = {
    "tpe": {"n_startup_trials": 4},
    "nsga2": {"population_size": 4},
    "nsga3": {"population_size": 4},
    "gp": {"n_startup_trials": 6},
    "qmc": {"scramble": True},
    "brute": {},
    "random": {},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_search_goes_on_as_an_uninterrupted_one(sampler):
    problem = Problem(conditional(), ONE, (Limit("params", 50.0, "max"),), seed=6)
    make = functools.partial(OptunaController, problem, sampler=sampler, sampler_args=SAMPLERS[sampler])
    history = search(make(), 8)
    for stop in (1, 6):
        resumed = make()
        resumed.tell(history[:stop])
        for number in range(stop, 8):
            (architecture,) = resumed.ask(1)
            assert architecture.arch_id == history[number].arch_id
            resumed.tell([history[number]])


def test_quasi_monte_carlo_takes_the_points_of_one_sequence():
    problem = Problem(flat(2, 4), ONE, seed=0)
    controller = OptunaController(problem, sampler="qmc", sampler_args={"scramble": False})
    asked = controller.ask(4)
    points = qmc.Sobol(2, scramble=False).random(16)
    # four equal cells of [0, 4) are four candidates; a point whose architecture is taken is passed over
    cells = [tuple(min(int(4 * value), 3) for value in point) for point in points]
    assert [tuple(a.values()) for a in asked] == list(dict.fromkeys(cells))[:4]


def test_brute_force_enumerates_what_is_left():
    space = conditional()
    controller = OptunaController(Problem(space, ONE), sampler="brute")
    taken = list(space.architectures())[::2]
    controller.tell([trial(i, a, TrialState.FAILED if i % 2 else TrialState.RUNNING) for i, a in enumerate(taken)])
    assert set(controller.ask(100)) == set(space.architectures()) - set(taken)


def test_default_sampler_follows_objectives_and_budget():
    def kind(objectives, budget, space=None):
        controller = OptunaController(Problem(space or flat(), objectives), budget=budget)
        return type(controller._make(seed=0)).__name__

    assert kind(ONE, 1000) == kind(ONE, None) == "TPESampler"
    assert kind(ONE, 100) == "GPSampler"
    assert kind(TWO, None) == kind(TWO, 299) == "TPESampler"
    assert kind(TWO, 300) == "NSGAIISampler"
    assert kind(ONE, 100, conditional()) == kind(ONE, 100, flat(9)) == "TPESampler"


def constrained(number, architecture):
    """The best values are ones, their sum is limited to 12; what breaks the limit is never evaluated."""
    total = float(sum(architecture.values()))
    if total > 12.0:
        return trial(number, architecture, TrialState.INFEASIBLE, finished=float(number), params=total)
    return trial(
        number,
        architecture,
        finished=float(number),
        params=total,
        loss=math.fsum((int(v) - 1) ** 2 for v in architecture.values()),
    )


@pytest.mark.parametrize("name", ["nsga2", "regularized", "optuna", "optuna_nsga2"])
def test_most_proposals_are_feasible_after_learning(name):
    space = flat(dimensions=8, size=6)  # a random architecture sums to 20 on average
    problem = Problem(space, ONE, (Limit("params", 12.0, "max"),), seed=2)

    def feasible(make):
        return [t.state is TrialState.COMPLETE for t in search(make(problem), 100, constrained)]

    assert sum(feasible(RandomController)) <= 15
    assert sum(feasible(CONTROLLERS[name])[-40:]) >= 20


def test_complete_trials_that_break_a_limit_lose_against_feasible_ones():
    space = flat(dimensions=2, size=4)
    controller = EvolutionController(Problem(space, ONE, (Limit("latency", 2.0, "max"),)), population_size=3)
    architectures = list(space.architectures())
    latencies = [2.0, 9.0, 3.0, 1.0, 2.5]
    controller.tell([trial(i, architectures[i], loss=float(-i), latency=t) for i, t in enumerate(latencies)])
    assert controller.survivors() == [architectures[3], architectures[0], architectures[4]]


def test_survivors_are_ordered_by_front_then_crowding():
    space = flat(dimensions=2, size=6)
    architectures = list(space.architectures())
    points = [(0.1, 10.0), (0.5, 20.0), (0.52, 21.0), (0.9, 40.0), (0.05, 30.0)]  # the last one is dominated
    controller = EvolutionController(Problem(space, TWO), population_size=5)
    controller.tell([trial(i, architectures[i], accuracy=a, params=p) for i, (a, p) in enumerate(points)])
    assert controller.survivors() == [architectures[i] for i in (0, 3, 2, 1, 4)]


def test_regularized_evolution_forgets_the_oldest_trials():
    space = flat(dimensions=2, size=6)
    architectures = list(space.architectures())
    controller = EvolutionController(Problem(space, ONE), population_size=3, method="regularized")
    controller.tell([trial(i, architectures[i], finished=10.0 - i, loss=float(i)) for i in range(6)])
    assert controller.survivors() == architectures[:3]  # trial 0 finished last, so it is the youngest
    controller.tell([trial(6, architectures[6], finished=11.0, loss=5.0)])
    assert controller.survivors() == [architectures[0], architectures[1], architectures[6]]


def two_objectives(number, architecture):
    values = torch.tensor([float(v) for v in architecture.values()]) / 5
    size = float((values**2).sum())
    weights = torch.linspace(1.0, 0.2, len(values))
    accuracy = float((weights * values.sqrt()).sum())
    return trial(number, architecture, finished=float(number), accuracy=accuracy, params=size)


def covered(history):
    points = [[t.value("accuracy"), t.value("params")] for t in history]
    return hypervolume(points, [0.0, 10.0], ["maximize", "minimize"])


def wins(make, objectives, evaluate, quality, seeds=10, budget=150):
    space = flat(dimensions=10)
    won = 0
    for seed in range(seeds):
        problem = Problem(space, objectives, seed=seed)
        mine = quality(search(make(problem), budget, evaluate))
        won += mine > quality(search(RandomController(problem), budget, evaluate))
    return won


def test_nsga2_covers_more_than_random():
    make = functools.partial(EvolutionController, population_size=24)
    assert wins(make, TWO, two_objectives, covered) >= 8


def separable(number, architecture):
    loss = math.fsum((int(v) - 3) ** 2 for v in architecture.values())
    return trial(number, architecture, finished=float(number), loss=loss)


def best(history):
    return -min(t.value("loss") for t in history)


def test_regularized_evolution_finds_a_separable_optimum():
    make = functools.partial(EvolutionController, population_size=20, method="regularized")
    assert wins(make, ONE, separable, best) >= 8
    problem = Problem(flat(dimensions=5), ONE, seed=0)
    assert best(search(make(problem), 300, separable)) == 0.0


def staged():
    """Two stages of width, kernel and depth, nine candidates of each."""
    parts = [f"stage{i}.{part}" for i in (1, 2) for part in ("width", "kernel", "depth")]
    return ToySpace(*(Choice.integer(name, 0, 8) for name in parts))


def coarse(**options):
    return CoarseToFineController(Problem(staged(), ONE, seed=4), **options)


def test_the_coarse_phase_is_a_grid_of_presets_that_choices_of_one_kind_share():
    asked = coarse(coarse=27).ask(27)
    assert len(set(asked)) == 27
    for architecture in asked:
        for part in ("width", "kernel", "depth"):
            assert architecture[f"stage1.{part}"] == architecture[f"stage2.{part}"]
            assert architecture[f"stage1.{part}"] in (0, 4, 8)
    assert asked != CoarseToFineController(Problem(staged(), ONE, seed=5)).ask(27)


def test_groups_name_the_presets_and_the_rest_stays_at_its_largest():
    asked = coarse(groups={"stage1.width": 2, "*.width": 3}, coarse=6).ask(6)
    assert {(a["stage1.width"], a["stage2.width"]) for a in asked} == {(i, j) for i in (0, 8) for j in (0, 4, 8)}
    assert {a[f"stage{i}.{part}"] for a in asked for i in (1, 2) for part in ("kernel", "depth")} == {8}


def test_the_fine_phase_changes_details_of_the_best_grid_points():
    controller = coarse(coarse=12, skeletons=2)
    grid = search(controller, 12, separable)
    ranked = sorted(grid, key=lambda t: (t.value("loss"), t.finished))
    assert [a.arch_id for a in controller.best()] == [t.arch_id for t in ranked[:2]]
    parents = controller.best()
    for architecture in controller.ask(30):
        assert min(sum(architecture[n] != parent[n] for n in parent) for parent in parents) <= 4
    controller.tell([separable(99, architecture) for architecture in [staged().architecture(separable_optimum())]])
    assert controller.best() == parents  # not on the grid


def separable_optimum():
    return {choice.name: 3 for choice in staged().choices}


def test_grid_points_that_break_a_limit_do_not_use_up_the_coarse_phase():
    problem = Problem(staged(), ONE, (Limit("params", 12.0, "max"),), seed=1)
    controller = CoarseToFineController(problem, coarse=3)
    history = search(controller, 40, constrained)
    grid = set(coarse(coarse=27).ask(27))
    on_grid = [problem.space.architecture(t.architecture) in grid for t in history]
    coarse_phase = history[: on_grid.index(False)]
    states = [t.state for t in coarse_phase]
    assert states.count(TrialState.COMPLETE) == 3
    assert states.count(TrialState.INFEASIBLE) > 3
    assert all(sum(a.values()) <= 12 for a in controller.best())


def test_skeletons_of_two_objectives_come_from_the_first_front():
    controller = CoarseToFineController(Problem(staged(), TWO), skeletons=3)
    grid = controller.ask(5)
    points = [(0.1, 10.0), (0.5, 20.0), (0.9, 40.0), (0.05, 30.0), (0.04, 31.0)]
    controller.tell([trial(i, a, accuracy=x, params=y) for i, (a, (x, y)) in enumerate(zip(grid, points, strict=True))])
    assert set(controller.best()) == set(grid[:3])


def test_coarse_to_fine_beats_random():
    make = functools.partial(CoarseToFineController, groups={"c[0-4]": 6, "c[5-9]": 6}, coarse=36)
    assert wins(make, ONE, separable, best) >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coarse": 0}, "coarse and skeletons must be 1 or more, got coarse=0"),
        ({"mutation_probability": 2.0}, "mutation_probability must be between 0 and 1, got 2.0"),
        ({"groups": {"*.widths": 3}}, r"groups\['\*.widths'\] matches no choice; choices are \['stage1.width'"),
        ({"groups": {"*.width": 0}}, r"must be 1 or more presets, got 0"),
        ({"groups": {f"stage{i}.{p}": 9 for i in (1, 2) for p in ("width", "kernel", "depth")}}, "has 531441 points"),
    ],
)
def test_coarse_to_fine_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        coarse(**options)


def test_optuna_tpe_beats_random():
    assert wins(OptunaController, ONE, separable, best, seeds=2, budget=60) == 2


def test_random_controller_imports_neither_optuna_nor_nni():
    code = "import sys, nas.controllers as c; c.RandomController; sys.exit(bool({'optuna', 'nni'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_controller_is_a_controller():
    problem = Problem(three(), ONE)
    assert all(isinstance(make(problem), Controller) for make in CONTROLLERS.values())


def test_a_history_told_anew_holds_each_trial_once_and_in_order():
    space = flat(2)
    told = list(space.architectures())[:6]
    history = History(Problem(space, ONE))
    history.tell([trial(i, a, TrialState.RUNNING) for i, a in enumerate(told)])
    assert history.pending() == told
    history.tell([trial(i, told[i], finished=float(-i), loss=1.0) for i in (4, 1, 3)])
    history.tell([trial(2, told[2], TrialState.FAILED, finished=9.0)])
    assert [item.architecture for item in history.lessons()] == [told[4], told[3], told[1]]
    assert history.pending() == [told[0], told[5]]
    history.tell([trial(4, told[4], finished=5.0, loss=2.0), trial(3, told[3], TrialState.FAILED, finished=-3.0)])
    assert [(item.order, item.costs) for item in history.lessons()] == [((-1.0, 1), (1.0,)), ((5.0, 4), (2.0,))]
    assert history.revision == 12


def test_each_generation_of_a_genetic_sampler_has_its_size_of_trials_in_finishing_order():
    problem = Problem(flat(), TWO, seed=2)
    controller = OptunaController(problem, sampler="nsga2", sampler_args={"population_size": 6})
    history = search(RandomController(problem), 20, lambda i, a: trial(i, a, finished=-i, accuracy=score(a), params=i))
    for told in (history[:9], history[9:]):  # in the order in which they finished the last are the first
        controller.tell(told)
        controller.ask(2)
    trials = [t for t in controller._study._study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    assert [t.system_attrs["NSGAIISampler:generation"] for t in trials] == [i // 6 for i in range(20)]
    assert [t.values[1] for t in trials] == [float(i) for i in reversed(range(20))]


def test_a_sampler_goes_on_where_the_one_before_it_looked_for_dimensions():
    made = []

    def make(seed):
        made.append(TPESampler(seed=seed, n_startup_trials=3))
        return made[-1]

    problem = Problem(flat(), ONE, seed=2)
    controller = OptunaController(problem, sampler=make)
    history = search(controller, 8)
    places = {id(sampler._search_space): sampler._search_space for sampler in made}
    looked = [place._cached_trial_number for place in places.values() if place._cached_trial_number > 0]
    assert len(looked) == 1
    assert looked[0] >= len(history)
