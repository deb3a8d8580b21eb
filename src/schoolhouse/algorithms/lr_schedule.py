"""Learning rates as pure functions of the step: a resumed run needs nothing but the step."""

from __future__ import annotations


def warmup_hold_decay(step: int, steps: int, peak: float, warmup: int = 0, decay: float = 0.0) -> float:
    """Rise over `warmup` steps, hold at `peak`, fall linearly to nearly 0 over the last `decay` share of `steps`.

    Known as trapezoid or WSD (Hu et al. 2024, arXiv 2404.06395). decay=1.0 is a plain linear decay. The first and the
    last step have a rate above 0.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    falling = decay * steps
    fall = min(1.0, (steps - step) / falling) if falling else 1.0
    return peak * min(rise, fall)
