"""Options of a task that say how final answers are graded, such as `?extract=hash&units=strict&grader=hf`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from schoolhouse.config import suggest
from schoolhouse.tasks.answer_match import answer_match, exactly_comparable
from schoolhouse.tasks.answers.compare import Policy
from schoolhouse.tasks.answers.extraction import Extraction
from schoolhouse.tasks.answers.grade import read_reference
from schoolhouse.tasks.answers.peers import GRADERS, load_peer, peer_match
from schoolhouse.tasks.answers.units import Units
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

GRADING_OPTIONS = ("extract", "units", "grader")


_LATEX = re.compile(r"\\(?!text|mathrm|mbox|%|\$|&|#|[ ,;:!])")


class Grading(NamedTuple):
    """The rules that find and compare the final answers of a task."""

    extraction: Extraction = "boxed"
    policy: Policy = Policy()
    grader: str = "ours"

    def in_process(self, references: Iterable[str]) -> bool:
        """Return True if answers can be compared with all references quickly and in the main process."""
        return self.grader == "ours" and all(map(exactly_comparable, references))

    def notes(self, references: Sequence[str]) -> tuple[str, ...]:
        """Return a note about references with LaTeX that cannot be read, and are therefore compared by spelling."""
        if self.grader != "ours":
            return ()
        spelled = [text for text in references if _LATEX.search(text) and read_reference(text).comparison == "text"]
        if not spelled:
            return ()
        return (
            f"{len(spelled):,} of {len(references):,} references cannot be read as mathematics, and are compared by "
            f"their spelling; the first is {spelled[0][:80]!r}",
        )

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the final answer equals the reference or an alias of the problem, else 0 and the reason."""
        references = (problem.reference, *problem.aliases)
        question = "\n".join(message.content for message in problem.messages if message.role == "user")
        if self.grader != "ours":
            return peer_match(self.grader, completion, references)
        return answer_match(completion, references, question, self.extraction, self.policy)


OURS = Grading()


def pop_grading(options: dict[str, str], where: str) -> Grading:
    """Remove the grading options from the options of a task, and return the grading.

    Raises SchoolError for an unknown value. The error message starts with the text `where`, such as `jsonl`.
    """
    values = {
        "extract": (options.pop("extract", "boxed"), get_args(Extraction)),
        "units": (options.pop("units", "optional"), get_args(Units)),
        "grader": (options.pop("grader", "ours"), tuple(GRADERS)),
    }
    for name, (value, known) in values.items():
        if value not in known:
            raise SchoolError(f"{where}: option `{name}` is `{value}`{suggest(value, list(known))}")
    chosen = {name: value for name, (value, _) in values.items()}
    if chosen["grader"] != "ours":
        load_peer(chosen["grader"])
    return Grading(chosen["extract"], Policy(chosen["units"]), chosen["grader"])  # ty: ignore[invalid-argument-type]
