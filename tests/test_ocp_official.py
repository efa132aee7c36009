"""acados-official without acados: a stand-in has its classes and methods, by its documentation, and solves by `kkt`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import casadi
import numpy as np
import pytest

from parity.cases.ocp import OptimalControlProblem
from parity.converters.ocp_sensitivity.kkt_map import KktMap
from parity.converters.ocp_sensitivity.official_map import OfficialMap
from parity.runtimes.solution_map import Adjoint, SolveFailure

POINTS = np.array([[0.5, 1.0], [-2.0, 0.3], [0.1, -0.4]])
x, u, p = casadi.SX.sym("x"), casadi.SX.sym("u"), casadi.SX.sym("p")
PROBLEM = OptimalControlProblem(
    "small", 3, x, u, p, x + u, (x - p) ** 2 + u**2 + 0.1 * x**4, (x - p) ** 2,
    control_bounds=(np.array([-1.0]), np.array([1.0])),
)  # fmt: skip


class StandIn:
    """AcadosOcpSolver."""

    def __init__(self, ocp: Any, **options: Any) -> None:
        self.ocp, self.kkt, self.initial, self.parameter = ocp, KktMap(PROBLEM), np.zeros(1), np.zeros(1)

    def reset(self) -> None: ...
    def set(self, stage: int, field: str, value: np.ndarray) -> None: ...

    def set_p_global_and_precompute_dependencies(self, value: np.ndarray) -> None:
        self.parameter = value

    def constraints_set(self, stage: int, field: str, value: np.ndarray) -> None:
        assert (stage, field) in ((0, "lbx"), (0, "ubx"))
        self.initial = value

    def solve(self) -> int:
        if np.abs(self.initial) > 100:
            return 4
        self.solution = self.kkt.solve(np.concatenate([self.initial, self.parameter]))
        return 0

    def get(self, stage: int, field: str) -> np.ndarray:
        return (self.solution.states if field == "x" else self.solution.controls)[stage]

    def get_cost(self) -> float:
        return self.solution.value

    def store_iterate_to_flat_obj(self) -> Any:
        return self.solution

    def load_iterate_from_flat_obj(self, iterate: Any) -> None:
        self.solution, self.factorised = iterate, False

    def setup_qp_matrices_and_factorize(self) -> int:
        self.factorised = True
        return 0

    def eval_solution_sensitivity(self, stages: list[int], what: str, **asked: bool) -> dict[str, list[np.ndarray]]:
        assert self.factorised and asked == {"return_sens_x": True, "return_sens_u": True}
        columns = slice(0, 1) if what == "initial_state" else slice(1, 2)
        found = self.kkt.sensitivity(self.solution)
        controls = [*found.controls[..., columns], np.zeros((0, 1))]
        return {"sens_x": [found.states[stage][:, columns] for stage in stages], "sens_u": controls}

    def eval_adjoint_solution_sensitivity(self, seed_x: Any, seed_u: Any, sanity_checks: bool) -> np.ndarray:
        found = self.kkt.sensitivity(self.solution)
        total = sum(seed[:, 0] @ found.states[stage][:, 1:] for stage, seed in seed_x)
        return np.asarray(total + sum(seed[:, 0] @ found.controls[stage][:, 1:] for stage, seed in seed_u))[None]

    def eval_and_get_optimal_value_gradient(self, what: str) -> np.ndarray:
        gradient = self.kkt.sensitivity(self.solution).value
        return gradient[:1] if what == "initial_state" else gradient[1:]


class BatchStandIn:
    """AcadosOcpBatchSolver."""

    def __init__(self, ocp: Any, size: int, *, num_threads_in_batch_solve: int, build: bool, **options: Any) -> None:
        assert ocp.solver_options.with_batch_functionality and num_threads_in_batch_solve == 2 and not build
        self.ocp_solvers = [StandIn(ocp) for _ in range(size)]

    def solve(self, count: int) -> None:
        self.status = np.array([solver.solve() for solver in self.ocp_solvers[:count]])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> OfficialMap:
    module = ModuleType("acados_template")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]  # found by find_spec
    parts = ("model", "cost", "constraints", "solver_options", "code_gen_options")
    module.AcadosOcp = lambda: SimpleNamespace(**{name: SimpleNamespace() for name in parts})  # type: ignore[attr-defined]
    module.AcadosOcpSolver, module.AcadosOcpBatchSolver = StandIn, BatchStandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acados_template", module)
    return OfficialMap(PROBLEM)


def test_solutions_and_sensitivities_are_put_together(engine: OfficialMap) -> None:
    exact = KktMap(PROBLEM)
    for point in POINTS:
        found, wanted = engine.solve(point), exact.solve(point)
        assert np.allclose(found.flat, wanted.flat, atol=1e-12)
        assert np.allclose(engine.sensitivity(found).flat, exact.sensitivity(wanted).flat, atol=1e-12)
        seed = Adjoint(np.ones((4, 1)), np.full((3, 1), -0.5), 2.0)
        assert np.allclose(engine.adjoint(found, seed), exact.adjoint(wanted, seed), atol=1e-12)


def test_a_batch_goes_to_the_batch_solver(engine: OfficialMap) -> None:
    for count in (1, 2):
        solve = engine.batch(count)
        starts = [engine.solve(0.99 * point) for point in POINTS]
        for _ in range(2):
            found = solve(POINTS, starts)
            assert [np.allclose(each.flat, engine.solve(each.point).flat, atol=1e-12) for each in found] == [True] * 3
        with pytest.raises(SolveFailure, match="status 4"):
            solve(np.array([[500.0, 0.0]]), [None])
