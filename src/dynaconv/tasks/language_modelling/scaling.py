"""Scaling laws of families of language models, and the compute advantage of one over another.

The law is L(N, D) = E + A / N^a + B / D^b of N parameters and D tokens (Hoffmann et al. 2022, section 3.3: a Huber loss
on logarithms, minimised by L-BFGS from a grid of starts).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize

DELTA = 1e-3  # of the Huber loss, as in the paper
LEAST = 6  # runs of a family: one more than the law has numbers


@dataclass(frozen=True)
class Run:
    """A trained model: its family, parameters, tokens trained on, FLOPs spent, held-out loss in nats per token."""

    family: str
    parameters: float
    tokens: float
    flops: float
    loss: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^a + B / D^b, and the FLOPs for each parameter and token, `cost`."""

    E: float
    A: float
    a: float
    B: float
    b: float
    cost: float

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """L(N, D)."""
        return self.E + self.A / parameters**self.a + self.B / tokens**self.b

    def optimal_loss(self, flops: float) -> float:
        """The least loss for some compute C: of the N for which N D cost = C."""
        product_ = flops / self.cost
        total = self.a + self.b
        parameters = (self.a * self.A / (self.b * self.B)) ** (1 / total) * product_ ** (self.b / total)
        return float(self.loss(np.array(parameters), np.array(product_ / parameters)))


@dataclass(frozen=True)
class Advantage:
    """How many times the compute a baseline needs for the same loss; with a 90% interval."""

    value: float
    low: float
    high: float


def check_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by family.

    Raises:
        ValueError: numbers that are not finite and positive, or too few runs of a family.
    """
    families: dict[str, list[Run]] = {}
    for run in runs:
        for name in ("parameters", "tokens", "flops", "loss"):
            value = getattr(run, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"a run of {run.family} has {name} {value}: leave it out, runs must have finite numbers"
                )
        families.setdefault(run.family, []).append(run)
    for name, members in families.items():
        if len({(run.parameters, run.tokens) for run in members}) < LEAST:
            raise ValueError(
                f"{name} has too few runs, {len(members)}: a law of five numbers needs {LEAST} or more of different "
                "sizes"
            )
        for what in ("parameters", "tokens"):
            if len({getattr(run, what) for run in members}) < 2:
                raise ValueError(f"all runs of {name} have the same {what}: the law needs several")
    return families


def fit(runs: Sequence[Run]) -> Law:
    """The law of one family."""
    N, D, loss = _columns(runs)
    starts = [
        np.array([math.log(loss.min() * share), math.log(loss.mean() / 4), a, math.log(loss.mean() / 4), b])
        for share, a, b in product((0.4, 0.8), (0.2, 0.5), (0.2, 0.5))
    ]
    return _law(runs, _minimise(N, D, loss, starts))


def compute_advantage(
    runs: Sequence[Run], baseline: Sequence[Run], *, resamples: int = 200, seed: int = 1
) -> Advantage:
    """The compute that a baseline needs for the loss that a family has at the largest compute measured, in its units.

    Both at their best numbers of parameters. The interval is that of a bootstrap over the residuals of both fits.

    Args:
        runs: of the family.
        baseline: of the other.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    largest = max(run.flops for run in [*runs, *baseline])
    laws = fit(runs), fit(baseline)
    value = _ratio(laws[0], laws[1], largest)
    rng = np.random.default_rng(seed)
    drawn = [_ratio(_refit(runs, laws[0], rng), _refit(baseline, laws[1], rng), largest) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.05, 0.95], method="inverted_cdf")  # interpolates no infinities
    return Advantage(value, float(low), float(high))


def _ratio(family: Law, baseline: Law, flops: float) -> float:
    """Infinite where the baseline never reaches that loss."""
    target = family.optimal_loss(flops)
    if target <= baseline.E:
        return math.inf
    gap = lambda logarithm: baseline.optimal_loss(flops * math.exp(logarithm)) - target  # noqa: E731
    bound = 1.0
    while gap(bound) > 0 or gap(-bound) < 0:
        bound *= 2
        if bound > 500:
            return math.inf
    root: Any = brentq(gap, -bound, bound)
    return math.exp(root)


def _refit(runs: Sequence[Run], law: Law, rng: np.random.Generator) -> Law:
    """The law of losses that residuals of others were added to; they are larger than those of a fit of five numbers."""
    N, D, loss = _columns(runs)
    fitted = law.loss(np.exp(N), np.exp(D))
    residuals = np.log(loss / fitted) * math.sqrt(len(runs) / (len(runs) - LEAST + 1))
    changed = fitted * np.exp(rng.choice(residuals - residuals.mean(), len(runs)))
    centre = (N.mean(), D.mean())
    start = np.array(
        [math.log(law.E), math.log(law.A) - law.a * centre[0], law.a, math.log(law.B) - law.b * centre[1], law.b]
    )
    return _law(runs, _minimise(N, D, changed, [start]))


def _columns(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log N, log D, L."""
    numbers = np.array([(run.parameters, run.tokens, run.loss) for run in runs]).T
    return np.log(numbers[0]), np.log(numbers[1]), numbers[2]


def _law(runs: Sequence[Run], found: np.ndarray) -> Law:
    N, D, _ = _columns(runs)
    e, A, a, B, b = found
    cost = float(np.exp(np.mean([math.log(run.flops / run.parameters / run.tokens) for run in runs])))
    return Law(math.exp(e), math.exp(A + a * N.mean()), float(a), math.exp(B + b * D.mean()), float(b), cost)


def _minimise(N: np.ndarray, D: np.ndarray, loss: np.ndarray, starts: list[np.ndarray]) -> np.ndarray:
    """[log E, log A', a, log B', b], A' and B' at the mean of log N and log D, which keeps them apart from a and b."""
    x, y, target = N - N.mean(), D - D.mean(), np.log(loss)

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([np.full_like(x, p[0]), p[1] - p[2] * x, p[3] - p[4] * y])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        residual = (top + np.log(total) - target) / DELTA
        shares /= total
        slope = np.clip(residual, -1, 1) / DELTA
        value = np.where(np.abs(residual) <= 1, residual**2 / 2, np.abs(residual) - 0.5).sum()
        weighted = slope * shares
        gradient = [weighted[0], weighted[1], -x * weighted[1], weighted[2], -y * weighted[2]]
        return float(value), np.array([part.sum() for part in gradient])

    bounds = [(None, math.log(loss.min())), (None, None), (1e-3, 3), (None, None), (1e-3, 3)]
    options = {"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-8}
    fits = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    return min(fits, key=lambda fit: fit.fun).x
