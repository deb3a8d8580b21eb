"""A task of your own: training problems, held-out problems, and how a completion is graded."""

from random import Random

from schoolhouse import Completion, Message, Problem, Task, Verdict, answer_match


class Sums(Task):
    name = "sums"
    in_process = True  # grading is quick and harmless: no worker process is needed

    def __init__(self, seed: int = 0, largest: str = "9") -> None:  # python:examples/my_task.py?largest=20
        self.seed, self.largest = seed, int(largest)

    def _problem(self, a: int, b: int) -> Problem:
        question = Message("user", f"Sum {a} and {b}. Put the answer in \\boxed{{}}.")
        return Problem(f"{a}+{b}", (question,), str(a + b))

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """A pure function of the seed and the step, so that a resumed run sees the same problems."""
        random = Random(f"{self.seed} {step}")
        pairs = [(random.randint(2, self.largest), random.randint(0, self.largest)) for _ in range(count)]
        return [self._problem(a, b) for a, b in pairs]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Held out: training never draws a 1 on the left."""
        return [self._problem(1, b) for b in range(self.largest + 1)][:count]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        return answer_match(completion, problem.reference)
