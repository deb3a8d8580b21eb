"""Learning rates as pure functions of the step. A resumed run needs only the number of the step."""

from __future__ import annotations


def warmup_hold_decay(step: int, steps: int, peak: float, warmup: int = 0, decay: float = 0.0) -> float:
    """The rate rises over `warmup` steps, stays at `peak`, and falls linearly to nearly 0.

    `decay` is the fraction of `steps`, at the end, over which the rate falls. This schedule is called trapezoid or WSD
    (Hu et al. 2024, arXiv 2404.06395). decay=1.0 is a plain linear decay. The rate of the first step and of the last
    step is above 0.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    falling = decay * steps
    fall = min(1.0, (steps - step) / falling) if falling else 1.0
    return peak * min(rise, fall)
