"""Learning rates as pure functions of the step. A resumed run needs only the step number."""

from __future__ import annotations


def warmup_hold_decay(step: int, steps: int, peak: float, warmup: int = 0, decay: float = 0.0) -> float:
    """The learning rate at `step`. The rate rises over `warmup` steps, stays at `peak`, and falls linearly to nearly 0.

    The rate falls during the last part of the run; `decay` is this part as a fraction of `steps`. A schedule of this
    form is called trapezoid or WSD (Hu et al. 2024, arXiv 2404.06395). With decay=1.0 and no warmup, the schedule is a
    plain linear decay. The learning rate is above 0 at the first step and at the last step.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    falling = decay * steps
    fall = min(1.0, (steps - step) / falling) if falling else 1.0
    return peak * min(rise, fall)
