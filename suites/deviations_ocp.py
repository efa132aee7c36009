"""Engines whose sensitivities are known to be wrong, and why. Their errors are in the report and redden nothing."""

from parity.deviations import Deviation

STAGES = ("ocp→solution-map",)
CURVED = ("pendulum", "vanderpol", "chain", "quadrotor", "learned", "scaling")
"""Families of nonlinear dynamics where some control is free: there the multipliers' terms of the Hessian count."""


def _curved(case):
    """Every third `cartpole` has all of its controls at a bound: no Hessian moves them."""
    return case.family in CURVED or (case.family == "cartpole" and case.number % 3 != 2)


def _engine(reason, *names, certain=lambda case: False):
    return Deviation(reason, layers=(), stages=STAGES, converters=names, certain=certain)


KNOWN_WRONG = (
    _engine(
        "acados' factorization is not the one at the solution, and bounds are smoothed",
        "acados", "acados-1e-8", "acados-1e-10",
    ),
    _engine(
        "the Gauss-Newton Hessian lacks the multipliers' terms", "acados-gauss-newton",
        certain=_curved,
    ),
    _engine("inactive bounds keep multipliers of 1e-11 and are counted as active", "casadi-nlpsol-ipopt-plain"),
    _engine("min_lam drops equations whose multiplier is zero, too", "casadi-nlpsol-ipopt-min-lam"),
    _engine("it relaxes active bounds by 1e-8, and CasADi passes no option for that on", "casadi-nlpsol-fatrop"),
)  # fmt: skip
