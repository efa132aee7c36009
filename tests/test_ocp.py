"""Optimal control problems, the two truths about their sensitivities, and engines that are wrong on purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import casadi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parity
from parity.cases.case import case_from_id, case_ids
from parity.cases.ocp import OptimalControlProblem
from parity.checks.sensitivity import check_sensitivity
from parity.converters.ocp_sensitivity.kkt_map import KktMap
from parity.converters.registry import find_converter
from parity.records import DEGENERATE, ERROR, FAIL, PASS, UNSUPPORTED
from parity.runtimes import representation_of, runtime_for
from parity.runtimes.differencing import same_branch
from parity.runtimes.ocp import OcpRuntime
from parity.runtimes.optimality import OptimalitySystem, Polished
from parity.runtimes.solution_map import Adjoint, SolutionMap, SolutionMapRuntime, SolveFailure, central_differences

EXACT = ("kkt", "finite-differences", "casadi-nlpsol", "casadi-nlpsol-sqpmethod", "casadi-nlpsol-ipopt-min-lam")
SMOOTH = ("integrator-0-0", "pendulum-0-0", "cartpole-0-1", "cartpole-0-2", "vanderpol-0-1", "chain-0-0", "learned-0-0")


def engine(name: str, problem: OptimalControlProblem) -> SolutionMap:
    made: SolutionMap = find_converter("ocp", "solution-map", name).function(problem, None)
    return made


def problem(
    *,
    horizon: int = 3,
    bound: float = 1.0,
    state_bound: float = np.inf,
    cost: Callable[..., casadi.SX] | None = None,
    name: str = "small",
) -> OptimalControlProblem:
    """x⁺ = x + u, |u| ≤ bound, |x| ≤ state_bound, min Σ (x-p)² + u² unless another stage cost is given."""
    x, u, p = casadi.SX.sym("x"), casadi.SX.sym("u"), casadi.SX.sym("p")
    stage = cost(x, u, p) if cost else (x - p) ** 2 + u**2
    of_control, of_state = ((np.array([-each]), np.array([each])) for each in (bound, state_bound))
    return OptimalControlProblem(
        name, horizon, x, u, p, x + u, stage, (x - p) ** 2, control_bounds=of_control, state_bounds=of_state
    )


def finding(problem: OptimalControlProblem, target: SolutionMap, point: np.ndarray):
    return check_sensitivity(OcpRuntime(problem), SolutionMapRuntime(target), (point[None],), "float64")


# --- cases ------------------------------------------------------------------------------------------------------------


def digest(case_id: str) -> str:
    """Of the problem's functions at a point, rounded to what any machine gives alike, and of its points."""
    case = case_from_id(case_id, "ocp")
    point, model = case.inputs("normal", 2)[0], case.model()
    words = [np.array2string(point, precision=10), case.layers, str(model.control_bounds), str(model.path_bounds)]
    return hashlib.sha256("/".join(words).encode()).hexdigest()[:12]


def test_every_case_rebuilds_from_its_id_alone() -> None:
    first = {case_id: digest(case_id) for case_id in case_ids(source="ocp", seed=3)}
    case_from_id.cache_clear()
    assert {case_id: digest(case_id) for case_id in first} == first
    assert len(set(first.values())) == len(first), "no two cases are alike"


def test_published_cases_stay_what_they_are() -> None:
    assert {name: digest(name) for name in ("lqr-0-0", "cartpole-0-1", "chain-0-1")} == DIGESTS


def test_cartpoles_have_no_some_and_only_active_bounds() -> None:
    active = []
    for number in range(3):
        case = case_from_id(f"cartpole-0-{number}", "ocp")
        runtime = OcpRuntime(case.model())
        at = runtime.polished(case.inputs()[0][0])
        active.append((at.side != 0).sum() - runtime.robust.program.equations.sum())
        controls = case.model().horizon
    assert active[0] == 0
    assert 0 < active[1] < controls
    assert active[2] == controls


def test_wrong_shapes_are_said_in_one_line() -> None:
    x, u, p = casadi.SX.sym("x", 2), casadi.SX.sym("u"), casadi.SX.sym("p")
    with pytest.raises(parity.ParityError, match=r"dynamics of problem bad has shape \(1, 1\)"):
        OptimalControlProblem("bad", 3, x, u, p, x[0], u**2, x[0])
    with pytest.raises(parity.ParityError, match=r"control_bounds .* of shape \(1,\)"):
        OptimalControlProblem("bad", 3, x, u, p, x, u**2, x[0], control_bounds=(np.zeros(2), np.ones(2)))


def test_points_that_do_not_fit_are_said_in_one_line() -> None:
    with pytest.raises(parity.ParityError, match="points of <OptimalControlProblem small"):
        parity.check(problem(), "kkt", np.ones((1, 3)), checks=["sensitivity"])


# --- the truth --------------------------------------------------------------------------------------------------------


def riccati(case_id: str) -> tuple[np.ndarray, np.ndarray]:
    """du₀/dx̂ and du₀/dr of the LQR case, by Riccati's recursion on matrices read off the problem's expressions."""
    model = case_from_id(case_id, "ocp").model()
    x, u = model.state, model.control
    a, b = (np.array(casadi.DM(casadi.jacobian(model.dynamics, each))) for each in (x, u))
    q, control = (np.array(casadi.DM(casadi.hessian(model.stage_cost, each)[0])) for each in (x, u))
    final = np.array(casadi.DM(casadi.hessian(model.terminal_cost, x)[0]))
    value, linear = final, -final  # the cost to go is ½ xᵀ V x + xᵀ L r + …
    for _ in range(model.horizon):
        inverse = np.linalg.inv(control + b.T @ value @ b)
        gain, feed = inverse @ b.T @ value @ a, inverse @ b.T @ linear
        closed = a - b @ gain
        value, linear = q + a.T @ value @ closed, -q + closed.T @ linear
    return -gain, -feed


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("case_id", ["lqr-0-0", "lqr-0-1", "lqr-5-2"])
def test_linear_quadratic_problems_agree_with_riccati(name: str, case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    by_state, by_reference = riccati(case_id)
    made = engine(name, case.model())
    found = made.sensitivity(made.solve(case.inputs()[0][0])).controls[0]
    expected = np.concatenate([by_state, by_reference], axis=1)
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("case_id", SMOOTH)
def test_the_two_truths_agree_within_their_own_estimate(case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    runtime = OcpRuntime(case.model())
    at = runtime.polished(case.inputs()[0][0])
    differences, implicit = runtime.differences(at), runtime.implicit(at).flat
    assert (np.abs(differences.jacobian - implicit) <= differences.error).all()
    assert differences.error.max() < 1e-6 * np.abs(implicit).max()


def test_central_differences_err_by_the_square_of_their_step_and_then_by_rounding() -> None:
    case = case_from_id("pendulum-0-1", "ocp")
    runtime = OcpRuntime(case.model())
    at = runtime.polished(case.inputs()[0][0])
    evaluate, truth = same_branch(runtime.system, at), runtime.implicit(at).flat
    steps = (1e-2, 1e-3, 1e-4, 1e-6, 1e-10)
    errors = [np.abs(central_differences(evaluate, at.point, step) - truth).max() for step in steps]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.2)
    assert errors[3] < 1e-9 * np.abs(truth).max()
    assert errors[4] > 10 * errors[3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["integrator", "pendulum", "vanderpol"]))
def test_polished_solutions_satisfy_the_optimality_conditions(seed: int, family: str) -> None:
    case = case_from_id(f"{family}-{seed}-0", "ocp")
    runtime = OcpRuntime(case.model())
    at = runtime.polished(case.inputs()[0][0])
    residual, r = runtime.system.residual(at)
    program = runtime.robust.program
    scale = max(1.0, np.abs(at.multipliers).max())
    assert np.abs(residual).max() < 1e-10 * scale
    assert (r >= program.lower - 1e-10).all() and (r <= program.upper + 1e-10).all()
    free = np.concatenate([np.ones(program.size, bool), ~program.equations])
    assert (at.multipliers * at.side)[free].min() >= -1e-10 * scale


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod"])
@pytest.mark.parametrize("case_id", SMOOTH)
def test_right_engines_pass(name: str, case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    records = parity.check(
        case.model(), name, case.inputs()[0], checks=["solution", "sensitivity"], path="ocp-sensitivity"
    )
    assert [record.verdict for record in records] == [PASS, PASS], records


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("casadi-nlpsol-ipopt-plain", "cartpole-0-1"),  # inactive bounds with tiny multipliers
        ("casadi-nlpsol-ipopt-min-lam", "chain-0-0"),  # equations without a multiplier
        ("casadi-nlpsol-fatrop", "integrator-0-0"),  # relaxed bounds
    ],
)
def test_wrong_engines_solve_and_are_caught(name: str, case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    solution, sensitivity = parity.check(
        case.model(), name, case.inputs()[0], checks=["solution", "sensitivity"], path="ocp-sensitivity"
    )
    assert solution.verdict == PASS
    assert sensitivity.verdict == FAIL
    assert "margins: complementarity" in sensitivity.message


class SignError(OptimalitySystem):
    def right_side(self, at: Polished) -> np.ndarray:
        return -super().right_side(at)


class SignErrorInOneBlock(OptimalitySystem):
    """The constraints' derivative by θ, with the wrong sign, where they hold a parameter."""

    def right_side(self, at: Polished) -> np.ndarray:
        right = super().right_side(at)
        nx = self.program.problem.states
        right[self.program.size :, nx:] *= -1
        return right


class TransposedJacobian(OptimalitySystem):
    """Of the dynamics by the state, in the first stage."""

    def matrix(self, at: Polished) -> np.ndarray:
        matrix, size = super().matrix(at), self.program.size
        problem = self.program.problem
        rows = size + int((at.active < size).sum()) + np.arange(problem.states)
        columns = np.arange(problem.states)
        block = np.ix_(rows, columns)
        matrix[block] = matrix[block].T.copy()
        return matrix


class MissingMultiplierTerm(OptimalitySystem):
    """The Hessian of the objective instead of that of the Lagrangian: Gauss-Newton's own error."""

    def matrix(self, at: Polished) -> np.ndarray:
        without = Polished(at.variables, np.zeros_like(at.multipliers), at.side, at.point)
        return super().matrix(without)


@pytest.mark.parametrize("error", [SignError, SignErrorInOneBlock, TransposedJacobian, MissingMultiplierTerm])
@pytest.mark.parametrize("case_id", ["pendulum-0-0", "vanderpol-0-0", "quadrotor-0-0"])
def test_planted_errors_are_caught(error: type[OptimalitySystem], case_id: str) -> None:
    case = case_from_id(case_id, "ocp")
    point = case.inputs()[0][0]
    broken = KktMap(case.model())
    assert finding(case.model(), broken, point).verdict == PASS
    broken.system = error(broken.solver.program)
    found = finding(case.model(), broken, point)
    assert found.verdict == FAIL
    assert found.comparison.error_ratio > 1e3


def test_an_error_in_both_engine_and_implicit_truth_is_caught_by_the_differences(monkeypatch) -> None:
    case = case_from_id("pendulum-0-0", "ocp")
    right = OptimalitySystem.right_side
    monkeypatch.setattr(OptimalitySystem, "right_side", lambda self, at: 1.001 * right(self, at))
    assert finding(case.model(), KktMap(case.model()), case.inputs()[0][0]).verdict == FAIL


@pytest.mark.parametrize("name", ["kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod", "finite-differences"])
def test_adjoint_and_forward_sensitivities_agree(name: str) -> None:
    case = case_from_id("integrator-0-0", "ocp")
    made = engine(name, case.model())
    solution = made.solve(case.inputs()[0][0])
    rng = np.random.RandomState(0)
    seed = Adjoint(rng.standard_normal(solution.states.shape), rng.standard_normal(solution.controls.shape), 0.7)
    forward = seed.of(made.sensitivity(solution))
    assert np.abs(made.adjoint(solution, seed) - forward).max() < 1e-9 * np.abs(forward).max()


@pytest.mark.parametrize("name", ["kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod"])
def test_a_warm_start_at_the_solution_changes_nothing(name: str) -> None:
    """sqpmethod would stop before its first QP, with multipliers of the start: `min_iter` is its cure."""
    case = case_from_id("cartpole-0-0", "ocp")
    point = case.inputs()[0][0]
    made = engine(name, case.model())
    cold = made.solve(point)
    warm = made.solve(point, cold)
    difference = np.abs(made.sensitivity(warm).flat - made.sensitivity(cold).flat).max()
    assert difference < 1e-8 * np.abs(made.sensitivity(cold).flat).max()


def test_a_curve_over_steps_has_its_best_step_judged() -> None:
    case = case_from_id("steps-0-0", "ocp")
    (record,) = parity.check(
        case.model(), "finite-differences", case.inputs()[0], checks=["steps"], path="ocp-sensitivity"
    )
    assert record.verdict == PASS
    assert record.message.count("at step") == 10
    assert record.max_abs < 1e-9


def test_a_solver_that_gets_stuck_is_started_at_the_solution() -> None:
    case = case_from_id("vanderpol-7-3", "ocp")
    (point,) = case.inputs("normal", 3)
    (record,) = parity.check(
        case.model(), "casadi-nlpsol-sqpmethod", point, checks=["solution"], path="ocp-sensitivity"
    )
    assert record.verdict == PASS


# --- where the derivative ends ----------------------------------------------------------------------------------------


def kink(offset: float) -> np.ndarray:
    """One step of min x² + u² + (x+u-p)² …: the initial state at which u₀ just meets its bound of 1, and beyond it."""
    model = problem(horizon=1)
    solver = KktMap(model)
    low, high = -5.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        bound = abs(solver.solve(np.array([middle, 0.0])).controls[0, 0]) >= 1
        low, high = (middle, high) if bound else (low, middle)
    return np.array([low + offset, 0.0])


@pytest.mark.parametrize("offset", [0.0, 1e-5, -1e-5])
def test_a_weakly_active_bound_is_degenerate_with_its_margin(offset: float) -> None:
    model = problem(horizon=1)
    found = finding(model, KktMap(model), kink(offset))
    assert found.verdict == DEGENERATE
    assert "1 bounds are weakly active" in found.message and "complementarity" in found.message


def test_a_wrong_derivative_is_wrong_at_a_weakly_active_bound_too() -> None:
    model = problem(horizon=1)
    broken = KktMap(model)
    broken.system = SignError(broken.solver.program)
    assert finding(model, broken, kink(1e-5)).verdict == FAIL


def test_a_saddle_point_is_degenerate() -> None:
    """Its derivative is right there; but it is no minimum, and IPOPT would walk away from it."""
    case = case_from_id("learned-7-2", "ocp")
    found = finding(case.model(), engine("casadi-nlpsol-sqpmethod", case.model()), case.inputs("another")[0][0])
    assert found.verdict == DEGENERATE
    assert "not positive definite (second-order conditions)" in found.message


def test_away_from_the_bound_it_is_judged() -> None:
    model = problem(horizon=1)
    for offset in (0.1, -0.1):
        assert finding(model, KktMap(model), kink(offset)).verdict == PASS


def test_a_flat_direction_is_degenerate_or_an_error_and_never_a_pass() -> None:
    flat = problem(cost=lambda x, u, p: (x - p) ** 2 + 0 * u, horizon=2)
    doubled = OptimalControlProblem(
        "doubled", 2, flat.state, casadi.SX.sym("v", 2), flat.parameter,
        flat.state, (flat.state - flat.parameter) ** 2, (flat.state - flat.parameter) ** 2,
    )  # fmt: skip
    (record,) = parity.check(doubled, "kkt", np.array([[0.5, 0.1]]), checks=["sensitivity"], path="ocp-sensitivity")
    assert record.verdict in (DEGENERATE, ERROR)
    assert "singular" in record.message or "reduced Hessian" in record.message


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kkt", "casadi-nlpsol", "casadi-nlpsol-sqpmethod", "casadi-nlpsol-fatrop"])
def test_an_infeasible_problem_is_a_clear_error(name: str) -> None:
    with pytest.raises(SolveFailure, match=r"ipopt|sqpmethod|fatrop"):
        engine(name, problem(state_bound=1.0)).solve(np.array([10.0, 0.0]))


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PARITY_ACADOS", str(tmp_path / "nothing"))
    records = parity.check(problem(), "acados", np.zeros((1, 2)), checks=["sensitivity"], path="ocp-sensitivity")
    assert [record.verdict for record in records] == [UNSUPPORTED]
    assert "parity setup acados" in records[0].message
    (official,) = parity.check(
        problem(), "acados-official", np.zeros((1, 2)), checks=["sensitivity"], path="ocp-sensitivity"
    )
    assert official.verdict == UNSUPPORTED and "acados" in official.message


def test_representations() -> None:
    model = problem()
    assert representation_of(model) == "ocp"
    made = parity.convert(model, "solution-map", np.zeros((1, 2)), converter="kkt")
    assert representation_of(made) == "solution-map"
    runtime = runtime_for(made)
    assert runtime.value((np.array([[0.5, 0.0], [0.1, 0.2]]),)).shape == (2, 4 + 3 + 1)
    assert runtime.jacobian((np.array([[0.5, 0.0]]),)).shape == (8, 2)


DIGESTS = {"lqr-0-0": "4c2e5a348208", "cartpole-0-1": "9ce910b54e05", "chain-0-1": "41c0133ee575"}
