"""Compare expressions that our parser cannot read, such as integrals and sums, with the library math-verify.

math-verify can run forever on some expressions. Therefore math-verify is called only in worker processes, which have a
timeout.
"""

from __future__ import annotations

import logging
import re
from multiprocessing import parent_process

from schoolhouse.tasks.answers.spelling import clean

_KNOWN = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|mathbb|setminus|cap|cup|subset|log)(?![a-zA-Z])")

_UNDONE = re.compile(r"\\(?:int|iint|oint|sum|prod|lim)(?![a-zA-Z])")


def needs_math_verify(reference: str) -> bool:
    """Return True if a reference that our parser cannot read contains mathematical signs that math-verify can read."""
    return bool(_KNOWN.search(clean(reference))) and not re.search(r"\\text\{[^{}]*[a-z]{3}", clean(reference))


def expression_fault(candidate: str, reference: str) -> str:
    """Return the reason why a candidate is not equal to the reference, or "" if both are equal.

    Raises RuntimeError in a main process, because math-verify needs a worker process with a timeout.
    """
    if parent_process() is None:
        raise RuntimeError(
            f"comparing with {reference!r} needs math-verify, which may run forever; grade in a worker process "
            "(`grade_all` or WorkerPool)"
        )
    signs = [set(_UNDONE.findall(clean(text))) for text in (candidate, reference)]
    if signs[0] - signs[1]:
        return "restates the problem: give the result"
    from math_verify import verify

    try:
        expected, value = _parse(reference), _parse(candidate)
        if not expected or not value:
            return "another answer" if value else "not readable as mathematics"
        # Thirty digits: at the default six, 0.333333 equals 1/3 and 1.414214 equals the root of 2.
        equal = verify(
            expected, value, float_rounding=30, numeric_precision=50, timeout_seconds=None, raise_on_error=True
        )
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError):
        return "not comparable as mathematics"  # an error inside sympy is no reason to leave the reply ungraded
    return "" if equal else "another answer"


def _parse(text: str) -> list:
    """Parse the whole text with math-verify. The timeout of math-verify is off, because the worker pool has its own
    timeout."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"\\boxed{{{clean(text)}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # ty: ignore[invalid-argument-type]
    )


def load_math_verify() -> None:
    """Import math-verify and use it once, because the first use is slow. The warnings of math-verify are turned off."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _parse("\\frac{1}{2}")
