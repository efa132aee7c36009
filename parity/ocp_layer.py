"""An optimal control problem as a layer of a torch network: its forward solves, its backward differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from parity.cases.ocp import OptimalControlProblem
from parity.converters.registry import find_converter
from parity.errors import ParityError
from parity.runtimes.solution_map import Adjoint, Sensitivity, Solution, SolutionMap, SolveFailure, each_row


class Optimum(NamedTuple):
    """Optimal states (batch, N+1, nx), controls (batch, N, nu) and value (batch,), in the inputs' dtype and device.

    `solved` (batch,) is False where there is no solution; the others are NaN there.
    """

    states: torch.Tensor
    controls: torch.Tensor
    value: torch.Tensor
    solved: torch.Tensor


class OcpLayer(torch.nn.Module):
    """(initial state, parameter) ↦ optimal states, controls and value, differentiable by both.

    `engine` is the name of a converter ocp→solution-map (`kkt`, `acados-polished`, …). Solves start from the last
    solution of the same row of the batch, unless `warm_start` is off. `on_failure="raise"` raises `ParityError` naming
    the rows without a solution; `"nan"` gives NaN there, and a gradient of zero where the loss leaves them out.
    `workers` engines share a batch, each with its rows; those of acados are processes and run at once.

    Everything is computed in float64 on the CPU. The backward uses adjoint sensitivities, and cannot be differentiated
    again.
    """

    def __init__(
        self,
        problem: OptimalControlProblem,
        engine: str = "kkt",
        *,
        on_failure: Literal["raise", "nan"] = "raise",
        warm_start: bool = True,
        workers: int = 1,
    ) -> None:
        super().__init__()
        if on_failure not in ("raise", "nan"):
            raise ParityError(f"on_failure is 'raise' or 'nan', not {on_failure!r}")
        if workers < 1:
            raise ParityError(f"workers is at least 1, not {workers}")
        convert = find_converter("ocp", "solution-map", engine).function
        self.problem, self.on_failure, self.warm_start = problem, on_failure, warm_start
        self._maps: list[SolutionMap] = [convert(problem, None) for _ in range(workers)]
        self._last: list[Solution | None] = []

    def forward(self, initial_state: torch.Tensor, parameter: torch.Tensor | None = None) -> Optimum:
        """Solve for a batch: `initial_state` (batch, nx) or (nx,); `parameter` (batch, np) or (np,), for all rows.

        Raises `ParityError` for other shapes, and (unless `on_failure="nan"`) where a row has no solution.
        """
        single = initial_state.dim() == 1
        states = initial_state[None] if single else initial_state
        shared = states.new_zeros(0) if parameter is None else parameter.to(states)
        parameters = shared.expand(len(states), -1) if shared.dim() == 1 else shared
        sizes = (self.problem.states, self.problem.parameters)
        if states.dim() != 2 or len(parameters) != len(states) or (states.shape[1], parameters.shape[1]) != sizes:
            raise ParityError(
                f"{self.problem!r} takes an initial state (batch, {sizes[0]}) and a parameter (batch, {sizes[1]}), "
                f"not {tuple(initial_state.shape)} and {tuple(shared.shape)}"
            )
        results = _Solve.apply(torch.cat([states, parameters], dim=1), self)
        return Optimum(*(result[0] for result in results)) if single else Optimum(*results)

    def forget(self) -> None:
        """Start the next solves from cold."""
        self._last = []

    def close(self) -> None:
        """End the engines' processes and remove their files."""
        for engine in self._maps:
            engine.close()

    def _solve(self, points: np.ndarray, differentiate: bool) -> list[tuple[Solution, Sensitivity | None] | str]:
        """Per row a solution, with its sensitivities if the engine cannot give them later; or why there is none."""
        last = self._last if self.warm_start and len(self._last) == len(points) else [None] * len(points)

        def solve(engine: SolutionMap, row: int) -> tuple[Solution, Sensitivity | None] | str:
            try:
                if not np.isfinite(points[row]).all():
                    raise SolveFailure("its input is not finite")
                found = engine.solve(points[row], last[row])
                return found, engine.sensitivity(found) if differentiate and engine.last_only else None
            except SolveFailure as failure:
                return str(failure)

        answers = each_row(self._maps, len(points), solve)
        self._last = [None if isinstance(answer, str) else answer[0] for answer in answers]
        return answers


class _Solve(torch.autograd.Function):
    """Points θ (batch, nθ) to the four tensors of `Optimum`."""

    @staticmethod
    def forward(ctx: Any, points: torch.Tensor, layer: OcpLayer) -> tuple[torch.Tensor, ...]:
        problem, rows = layer.problem, len(points)
        array = points.detach().to("cpu", torch.float64).numpy()
        answers = layer._solve(array, ctx.needs_input_grad[0])
        failures = {row: answer for row, answer in enumerate(answers) if isinstance(answer, str)}
        if failures and layer.on_failure == "raise":
            row, why = next(iter(failures.items()))
            raise ParityError(f"{len(failures)} of {rows} problems have no solution; row {row}: {why}")
        states = np.full((rows, problem.horizon + 1, problem.states), np.nan)
        controls = np.full((rows, problem.horizon, problem.controls), np.nan)
        value, solved = np.full(rows, np.nan), np.zeros(rows, bool)
        for row, answer in enumerate(answers):
            if not isinstance(answer, str):
                states[row], controls[row], value[row] = answer[0].states, answer[0].controls, answer[0].value
                solved[row] = True
        ctx.layer, ctx.answers = layer, answers
        ctx.dtype, ctx.device, ctx.width = points.dtype, points.device, points.shape[1]
        mask = torch.from_numpy(solved).to(points.device)
        ctx.mark_non_differentiable(mask)
        return (*(torch.from_numpy(each).to(points.device, points.dtype) for each in (states, controls, value)), mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        states, controls, value = (each.detach().to("cpu", torch.float64).numpy() for each in gradients[:3])
        answers: Sequence[tuple[Solution, Sensitivity | None] | str] = ctx.answers

        def differentiate(engine: SolutionMap, row: int) -> np.ndarray:
            seed = Adjoint(states[row], controls[row], float(value[row]))
            answer = answers[row]
            used = bool(seed.states.any() or seed.controls.any() or seed.value)
            if isinstance(answer, str) or not used:
                return np.full(ctx.width, np.nan if used else 0.0)
            solution, sensitivity = answer
            return seed.of(sensitivity) if sensitivity is not None else engine.adjoint(solution, seed)

        found = np.stack(each_row(ctx.layer._maps, len(answers), differentiate))
        return torch.from_numpy(found).to(ctx.device, ctx.dtype), None
