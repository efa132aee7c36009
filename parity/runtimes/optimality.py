"""The optimality (KKT) system of a nonlinear program: its solution to the last digit, its derivative, its margins.

With r = (w, g(w, θ)), multipliers λ in CasADi's sign (positive at an upper bound) and an active set A:

    ∇objective + (∂r/∂w)ᵀ λ = 0,   r_A = bounds_A,   λ = 0 elsewhere.

Differentiating it by θ (the implicit function theorem) gives the solution's sensitivities, where the solution is
strictly complementary, the active constraints' gradients are independent (LICQ), and the Hessian of the Lagrangian is
positive definite on their null space. See Nocedal & Wright, Numerical Optimization, chapters 12 and 18; Fiacco (1983).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import casadi
import numpy as np
from scipy.linalg import lu_factor, lu_solve

from parity.runtimes.solution_map import Adjoint, Sensitivity, Solution, SolveFailure
from parity.runtimes.transcription import NonlinearProgram

NEWTON_STEPS = 30
ACTIVE_SET_CHANGES = 60
AT_BOUND = 1e-6
ROUNDING = 1e-13
"""A residual below this share of its terms' size is rounding."""


@dataclass(frozen=True, eq=False)
class Polished:
    """A solution of the optimality system: `side` is -1 (at the lower bound), 1 (at the upper one, or an equation)
    or 0 (inactive), per element of r."""

    variables: np.ndarray
    multipliers: np.ndarray
    side: np.ndarray
    point: np.ndarray

    @property
    def active(self) -> np.ndarray:
        return np.flatnonzero(self.side)


@dataclass(frozen=True)
class Margins:
    """How far a solution is from where its derivative ends."""

    complementarity: float
    """Smallest multiplier of an active bound, or slack of an inactive one."""
    independence: float
    """Smallest singular value of the active constraints' gradients, each scaled to length one (LICQ)."""
    curvature: float
    """Smallest eigenvalue of the Hessian of the Lagrangian on the null space of those gradients."""
    condition: float
    """Condition number of the optimality system's matrix."""
    weakest: tuple[int, ...]
    """Inequalities whose multiplier and slack are both below `WEAK`."""


WEAK = 1e-3
LEAST_INDEPENDENCE = 1e-8
LEAST_CURVATURE = 1e-8
LARGEST_CONDITION = 1e12


class OptimalitySystem:
    """Evaluates the system of one program; compiled once, for all points."""

    def __init__(self, program: NonlinearProgram) -> None:
        self.program = program
        w, point, g = program.variables, program.point, program.constraints
        multipliers = casadi.SX.sym("lam", program.size + g.numel())
        r = casadi.vertcat(w, g)
        lagrangian = program.objective + casadi.dot(multipliers, r)
        gradient = casadi.gradient(lagrangian, w)
        hessian = casadi.hessian(lagrangian, w)[0]
        arguments = [w, multipliers, point]
        self._residual = casadi.Function("residual", arguments, [gradient, r, program.objective])
        outputs = [hessian, casadi.jacobian(r, w)]
        self._matrices = casadi.Function("matrices", arguments, outputs)
        by_point = [casadi.jacobian(gradient, point), casadi.jacobian(r, point), casadi.gradient(lagrangian, point)]
        self._by_point = casadi.Function("by_point", arguments, by_point)
        self._equation = np.concatenate([np.zeros(program.size, bool), program.equations])

    def residual(self, at: Polished) -> tuple[np.ndarray, np.ndarray]:
        """The right-hand side of Newton's method (the gradient, the active constraints' gaps), and r."""
        gradient, r, _ = (each.full().ravel() for each in self._residual(at.variables, at.multipliers, at.point))
        active = at.active
        bounds = np.where(at.side < 0, self.program.lower, self.program.upper)[active]
        return np.concatenate([gradient, r[active] - bounds]), r

    def matrix(self, at: Polished) -> np.ndarray:
        """[H Aᵀ; A 0], dense."""
        hessian, jacobian = (each.full() for each in self._matrices(at.variables, at.multipliers, at.point))
        rows = jacobian[at.active]
        return np.block([[hessian, rows.T], [rows, np.zeros((len(rows), len(rows)))]])

    def right_side(self, at: Polished) -> np.ndarray:
        """Derivatives of the residual by θ, shape (nw + active, nθ)."""
        gradient, r, _ = (each.full() for each in self._by_point(at.variables, at.multipliers, at.point))
        return np.concatenate([gradient, r[at.active]])

    def value_gradient(self, at: Polished) -> np.ndarray:
        """The value's derivative by θ, which is the Lagrangian's (the envelope theorem), shape (nθ,)."""
        return self._by_point(at.variables, at.multipliers, at.point)[2].full().ravel()

    def solution(self, at: Polished) -> Solution:
        value = float(self._residual(at.variables, at.multipliers, at.point)[2])
        problem, flat = self.program.problem, at.variables[self.program.places]
        cut = (problem.horizon + 1) * problem.states
        states, controls = flat[:cut].reshape(-1, problem.states), flat[cut:].reshape(-1, problem.controls)
        return Solution(at.point, states, controls, value, at)

    def pack(self, states: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """w of states and controls."""
        variables = np.empty(self.program.size)
        variables[self.program.places] = np.concatenate([states.ravel(), controls.ravel()])
        return variables

    # --- solving ------------------------------------------------------------------------------------------------------

    def start(self, variables: np.ndarray, multipliers: np.ndarray, point: np.ndarray) -> Polished:
        """A first guess of the active set: where the multiplier outweighs the slack."""
        zero = Polished(variables, np.zeros_like(multipliers), np.zeros(len(multipliers), int), point)
        _, r = self.residual(zero)
        program = self.program
        side = np.where(multipliers > program.upper - r, 1, 0) - np.where(-multipliers > r - program.lower, 1, 0)
        side[self._equation] = 1
        return Polished(variables, np.where(side != 0, multipliers, 0.0), side, point)

    def near(self, variables: np.ndarray, point: np.ndarray) -> Polished:
        """The same from the variables alone: what lies at its bound, with the multipliers that fit best."""
        program = self.program
        _, r = self.residual(
            Polished(variables, np.zeros(len(program.lower)), np.zeros(len(program.lower), int), point)
        )
        side = np.where(program.upper - r < AT_BOUND, 1, np.where(r - program.lower < AT_BOUND, -1, 0))
        side[self._equation] = 1
        at = Polished(variables, np.zeros(len(r)), side, point)
        gradient, rows = self.residual(at)[0][: program.size], self.matrix(at)[program.size :, : program.size]
        multipliers = np.zeros(len(r))
        multipliers[at.active] = np.linalg.lstsq(rows.T, -gradient)[0]
        return self.start(variables, multipliers, point)

    def polish(self, at: Polished) -> Polished:
        """Newton's method on the active set, which changes by its worst violation until none is left.

        Raises `SolveFailure` where that does not end, or the matrix is singular.
        """
        for _ in range(ACTIVE_SET_CHANGES):
            at = self.newton(at)
            change = self.violation(at)
            if change is None:
                return at
            index, side = change
            sides, multipliers = at.side.copy(), at.multipliers.copy()
            sides[index] = side
            multipliers[index] = 0.0
            at = Polished(at.variables, multipliers, sides, at.point)
        raise SolveFailure("no active set satisfies the optimality conditions")

    def newton(self, at: Polished, factors: Any = None) -> Polished:
        """Solve the system for a fixed active set to rounding. `factors` of a nearby matrix serve as long as they
        reduce the residual quickly."""
        size, best, kept = self.program.size, np.inf, at
        for _ in range(NEWTON_STEPS):
            residual, _ = self.residual(at)
            error = float(np.abs(residual).max())
            if not np.isfinite(error):
                break
            if error >= 0.5 * best and best < 1e-9 * self._scale(kept):  # rounding: it gets no better
                return kept
            if error > 0.1 * best:
                factors = None
            if error < best:
                best, kept = error, at
            if factors is None:
                factors = self._factorise(at)
            step = lu_solve(factors, -residual, check_finite=False)
            multipliers = at.multipliers.copy()
            multipliers[at.active] += step[size:]
            at = Polished(at.variables + step[:size], multipliers, at.side, at.point)
        if best < 1e-9 * self._scale(kept):
            return kept
        raise SolveFailure(f"Newton's method does not converge: residual {best:.1e}")

    def _scale(self, at: Polished) -> float:
        return max(1.0, float(np.abs(at.variables).max()), float(np.abs(at.multipliers).max()))

    def _factorise(self, at: Polished) -> Any:
        matrix = self.matrix(at)
        if not np.isfinite(matrix).all():
            raise SolveFailure("the optimality system is not finite")
        factors = lu_factor(matrix, check_finite=False)
        if np.abs(np.diag(factors[0])).min() < 1e-14 * np.abs(matrix).max():
            raise SolveFailure("the optimality system is singular: the solution is not unique")
        return factors

    def violation(self, at: Polished) -> tuple[int, int] | None:
        """The worst violated condition as (index, new side), or None."""
        _, r = self.residual(at)
        tolerance = ROUNDING * self._scale(at)
        program = self.program
        above, below = r - program.upper, program.lower - r
        wrong_sign = np.where(self._equation, 0.0, -at.side * at.multipliers)
        outside = np.where(at.side == 0, np.maximum(above, below), 0.0)
        index = int(np.argmax(np.maximum(wrong_sign, outside)))
        if max(wrong_sign[index], outside[index]) <= tolerance:
            return None
        if at.side[index]:
            return index, 0
        return index, 1 if above[index] > below[index] else -1

    # --- differentiating ----------------------------------------------------------------------------------------------

    def differentiate(self, at: Polished) -> Sensitivity:
        """All sensitivities, by the implicit function theorem."""
        derivative = lu_solve(self._factorise(at), -self.right_side(at), check_finite=False)
        flat = derivative[: self.program.size][self.program.places]
        problem, columns = self.program.problem, flat.shape[1]
        cut = (problem.horizon + 1) * problem.states
        states = flat[:cut].reshape(-1, problem.states, columns)
        controls = flat[cut:].reshape(-1, problem.controls, columns)
        return Sensitivity(states, controls, self.value_gradient(at))

    def adjoint(self, at: Polished, seed: Adjoint) -> np.ndarray:
        """One solve with the transposed (here symmetric) matrix."""
        rows = np.zeros(self.program.size + len(at.active))
        rows[: self.program.size] = self.pack(seed.states, seed.controls)
        solved = lu_solve(self._factorise(at), rows, trans=1, check_finite=False)
        return -self.right_side(at).T @ solved + seed.value * self.value_gradient(at)

    def flip(self, at: Polished, inequalities: tuple[int, ...]) -> Polished:
        """The same solution with these inequalities counted the other way: active ones as inactive, and the reverse."""
        _, r = self.residual(at)
        side, multipliers = at.side.copy(), at.multipliers.copy()
        for index in inequalities:
            nearer_upper = self.program.upper[index] - r[index] < r[index] - self.program.lower[index]
            side[index] = 0 if side[index] else (1 if nearer_upper else -1)
            multipliers[index] = 0.0
        return Polished(at.variables, multipliers, side, at.point)

    def margins(self, at: Polished) -> Margins:
        _, r = self.residual(at)
        program = self.program
        slack = np.minimum(r - program.lower, program.upper - r)
        strength = np.where(self._equation, np.inf, np.maximum(np.abs(slack), np.abs(at.multipliers)))
        matrix = self.matrix(at)
        size = program.size
        rows = matrix[size:, :size]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        _, singular, basis = np.linalg.svd(rows)
        smallest = float(singular.min()) if len(singular) else 1.0
        independence = 0.0 if len(rows) > size else smallest
        null = basis[int((singular > 1e-12).sum()) :].T
        reduced = null.T @ matrix[:size, :size] @ null
        curvature = float(np.linalg.eigvalsh(reduced).min()) if reduced.size else np.inf
        weakest = tuple(int(index) for index in np.flatnonzero(strength < WEAK))
        return Margins(float(strength.min()), independence, curvature, float(np.linalg.cond(matrix)), weakest)
