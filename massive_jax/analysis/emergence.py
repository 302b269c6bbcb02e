"""How massive activations emerge in training: a curve of five parameters through a layer's ratio over steps.

The curve, its peak and the reparametrisation that is fitted are equations 9, 13 and 14 of *Hidden Dynamics of Massive
Activations in Transformer Training* (arXiv 2508.03616).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PARAMETERS = ("amplitude", "decay", "rate", "offset", "baseline")
# Starting points: decays over the whole training, and offsets as shares of it.
_DECAYS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_NO_DECAY = 1e-4  # over the whole training: what is less is none
_OFFSETS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
_TRIES = 4
_MOST = 20.0  # of |log γ|, over the training
_REACH = 30.0  # most of λt₀: A has e to that power in it


@dataclasses.dataclass(frozen=True)
class EmergenceFit:
    """Describes a fitted curve, A e^(−λx) log x + K with x = γt + t₀ (equation 9).

    Attributes:
      amplitude: A.
      decay: λ, at least 0.
      rate: γ, per step.
      offset: t₀.
      baseline: K, which the ratio nears as training goes on where λ > 0.
      errors: the standard error of each, to first order, in that order; nan where the points do not determine it (K
        beside λ = 0, say). Where the curve is all but an exponential, they are as large as the parameters, or larger.
      r_squared: share of the variance over steps that the curve explains.
    """

    amplitude: float
    decay: float
    rate: float
    offset: float
    baseline: float
    errors: tuple[float, float, float, float, float]
    r_squared: float

    def at(self, steps: ArrayLike) -> np.ndarray:
        """Gives the curve's ratio at steps."""
        return emergence_curve(steps, **{name: getattr(self, name) for name in PARAMETERS})

    @property
    def peak(self) -> float | None:
        """Gives the step of the curve's extremum (equation 13), which may lie past the training; None without one."""
        from scipy.special import lambertw

        if self.decay <= 0:
            return None
        step = (float(np.exp(lambertw(1 / self.decay).real)) - self.offset) / self.rate
        return step if step > 0 and np.isfinite(step) else None


def emergence_curve(
    steps: ArrayLike, *, amplitude: float, decay: float, rate: float, offset: float, baseline: float
) -> np.ndarray:
    """Gives A e^(−λx) log x + K at steps (equation 9); the parameters as in `EmergenceFit`."""
    x = rate * np.asarray(steps, float) + offset
    return np.asarray(amplitude * np.exp(-decay * x) * np.log(x) + baseline)


def fit_emergence(steps: ArrayLike, ratios: ArrayLike) -> EmergenceFit:
    """Finds the curve through the ratio of a layer's largest to its median magnitude, by least squares.

    From the best of a grid over the two parameters that the curve is not linear in.

    Args:
      steps: training steps [N], at least 0 and different from each other.
      ratios: the ratio at each [N].

    Raises:
      ValueError: points that no five parameters can be told from: fewer than six, numbers that are not finite, ratios
        that do not change.
    """
    from scipy.optimize import least_squares

    t, y = np.asarray(steps, float), np.asarray(ratios, float)
    if t.ndim != 1 or t.shape != y.shape:
        raise ValueError(f"steps of shape {t.shape} and ratios of shape {y.shape}; give one ratio a step.")
    if len(t) <= len(PARAMETERS):
        raise ValueError(f"{len(t)} points; a curve of five parameters needs at least six.")
    if not (np.isfinite(t).all() and np.isfinite(y).all()):
        raise ValueError("a step or a ratio is not finite.")
    if (t < 0).any() or len(np.unique(t)) < len(t):
        raise ValueError("a step is negative, or there twice.")
    height = float(np.ptp(y))
    if height <= 1e-9 * float(np.abs(y).max()):
        raise ValueError("the ratio does not change.")
    # Everything of the order of one: t in trainings, y in ranges.
    span, low = float(t.max()), float(y.min())
    s, z = t / span, (y - low) / height

    def columns(decay: float, offset: float) -> np.ndarray:
        """What equation 14 is linear in, [N, 3]: a logarithm and an exponential that decay, and the baseline."""
        falling = np.exp(-decay * s)
        return np.stack([falling * np.log(s + offset), falling, np.ones_like(s)], axis=1)

    def bounded(found: np.ndarray) -> tuple[float, float]:
        """The decay and the offset; λt₀, their product, within what leaves A a number."""
        return float(found[0]), float(min(np.exp(found[1]), _REACH / max(found[0], 1e-30)))

    def residuals(found: np.ndarray) -> np.ndarray:
        matrix = columns(*bounded(found))
        return np.asarray(matrix @ _weights(matrix, z) - z)

    starts = [(decay, np.log(offset)) for decay in _DECAYS for offset in _OFFSETS]
    bounds = ([0.0, np.log(1e-7)], [1e4, np.log(1e3)])
    starts.sort(key=lambda start: float((residuals(np.array(start)) ** 2).sum()))
    tight = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}
    tried = [least_squares(residuals, start, bounds=bounds, **tight) for start in starts[:_TRIES]]
    found = min(tried, key=lambda one: one.cost)
    beta, tau = bounded(found.x)
    if beta < _NO_DECAY:
        beta = 0.0
    logarithm, constant, base = _weights(columns(beta, tau), z)
    if beta == 0:  # the constant and the baseline are one number
        constant, base = 0.0, constant + base
    scaled = np.array([beta, tau, logarithm, constant, base])
    with np.errstate(all="ignore"):
        values = _parameters(scaled, span, height, low)
        errors = _errors(scaled, columns(beta, tau), s, found.cost, span, height, low)
    r_squared = 1 - 2 * found.cost / float(((z - z.mean()) ** 2).sum())
    amplitude, decay, rate, offset, baseline = map(float, values)
    return EmergenceFit(amplitude, decay, rate, offset, baseline, errors, r_squared)


def _weights(matrix: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A₁, A₂ and K that fit best, with log γ = A₂ / A₁ within bounds: beyond them the logarithm is a constant."""
    found = np.linalg.lstsq(matrix, z, rcond=None)[0]
    if abs(found[1]) <= _MOST * abs(found[0]):
        return np.asarray(found)

    def at_bound(bound: float) -> tuple[float, np.ndarray]:
        joined = np.stack([matrix[:, 0] + bound * matrix[:, 1], matrix[:, 2]], axis=1)
        scale, base = np.linalg.lstsq(joined, z, rcond=None)[0]
        return float(((joined @ [scale, base] - z) ** 2).sum()), np.array([scale, bound * scale, base])

    return min((at_bound(bound) for bound in (-_MOST, _MOST)), key=lambda one: one[0])[1]


def _parameters(scaled: np.ndarray, span: float, height: float, low: float) -> np.ndarray:
    """A, λ, γ, t₀, K of the curve with β, τ₀, A₁, A₂, K of equation 14, of steps over `span` and ratios as scaled."""
    beta, tau, logarithm, constant, base = scaled
    rate = np.exp(constant / logarithm)  # per training
    decay = beta / rate
    amplitude = height * logarithm * np.exp(beta * tau)
    return np.array([amplitude, decay, rate / span, tau * rate, low + height * base])


def _errors(
    scaled: np.ndarray, matrix: np.ndarray, s: np.ndarray, cost: float, span: float, height: float, low: float
) -> tuple[Any, ...]:
    """Standard errors of the five, to first order; nan where the points do not determine one."""
    _, tau, logarithm, constant, _ = scaled
    varying = logarithm * matrix[:, 0] + constant * matrix[:, 1]
    slopes = np.stack([-s * varying, logarithm * matrix[:, 1] / (s + tau), *matrix.T], axis=1)
    _, size, right = np.linalg.svd(slopes, full_matrices=False)
    kept = size > size[0] * 1e-10
    variance = 2 * cost / (len(s) - len(scaled))
    # How the five change with the scaled ones: central differences of a closed form.
    step = 1e-6 * np.maximum(np.abs(scaled), 1e-6)
    turned = np.stack(
        [
            (_parameters(scaled + e, span, height, low) - _parameters(scaled - e, span, height, low)) / (2 * e.sum())
            for e in np.diag(step)
        ],
        axis=1,
    )
    free = np.abs(turned @ right[~kept].T).max(axis=1, initial=0.0)  # how it changes where the curve does not
    known = turned @ right[kept].T / size[kept]
    errors = np.sqrt(variance * (known**2).sum(axis=1))
    undetermined = free > 1e-6 * np.linalg.norm(turned, axis=1)
    return tuple(float(e) for e in np.where(undetermined | ~np.isfinite(errors), np.nan, errors))
