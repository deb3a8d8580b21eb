"""Chat with a model in the terminal.

The text of a thought is dim, and the text of an answer is not dim. Text is shown while it is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from schoolhouse.policy.interface import Generator
from schoolhouse.types import Completion, Key, Message, Problem, Rollout, SchoolError

HELP = "/reset starts a new chat, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer, /help shows this"


def chat(
    policy: Generator,
    max_new_tokens: int,
    temperature: float,
    input_lines: Iterable[str] | None = None,
    console: Console | None = None,
    seed: int = 0,
) -> Rollout | None:
    """Chat until the user enters /quit or the input ends. Returns the last conversation.

    `max_new_tokens`: the maximum number of tokens of one completion. If the model's context has less room, the limit is
        lower.
    `input_lines`: lines of text that are used instead of input from the keyboard.
    """
    console = console or Console()
    lines = None if input_lines is None else iter(input_lines)
    console.print(HELP, style="dim")
    conversation: Rollout | None = None
    num_conversations = 0
    while True:
        try:
            line = console.input("[bold]> [/bold]") if lines is None else next(lines)
        except KeyboardInterrupt:
            console.print("\n" + HELP, style="dim")
            continue
        except (EOFError, StopIteration):
            console.print()
            return conversation
        line = line.encode("utf-8", "replace").decode().strip()  # a terminal may send invalid characters
        if line == "/quit":
            return conversation
        if line == "/reset":
            conversation = None
            console.print("new chat", style="dim")
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            message = Message("user", line)
            if conversation is None:
                key = Key(seed, "chat", problem=num_conversations)
                prompt = policy.conversation.prompt_rollout(Problem("chat", (message,), ""), key)
                num_conversations += 1
            else:
                prompt = policy.conversation.append_messages(conversation, [message])
            try:
                conversation = _answer(policy, prompt, max_new_tokens, temperature, console)
            except SchoolError as error:
                console.print(f"{error} (/reset starts a new chat)", style="red", markup=False)


def _answer(policy: Generator, prompt: Rollout, max_new_tokens: int, temperature: float, console: Console) -> Rollout:
    """Sample an answer and show it. Ctrl-C ends the answer, but the tokens that were sampled so far are kept."""
    style = policy.conversation.thought_format
    view = _CompletionView(console, (style.start, style.end))
    tokens: list[int] = []
    logprobs: list[float] = []

    def sampled_so_far() -> Rollout:
        return prompt.append_sampled(tokens, logprobs, "length", 0)

    def on_token(_: int, token: int, logprob: float) -> None:
        tokens.append(token)
        logprobs.append(logprob)
        view.show(policy.conversation.parse_completion(sampled_so_far()))

    max_new_tokens = max(1, min(max_new_tokens, policy.max_seq_len - len(prompt)))
    try:
        (rollout,) = policy.extend([prompt], max_new_tokens, temperature=temperature, on_token=on_token)
    except KeyboardInterrupt:
        rollout = sampled_so_far()
    completion = policy.conversation.parse_completion(rollout)
    view.show(completion, final=True)
    console.print("" if completion.complete else " (cut off)", style="dim")
    return rollout


class _CompletionView:
    """Prints the new text of a growing completion."""

    def __init__(self, console: Console, marks: Sequence[str]) -> None:
        self._console, self._marks = console, marks
        self._thought = self._answer = ""

    def show(self, completion: Completion, final: bool = False) -> None:
        thought, answer = completion.thought or "", completion.answer
        if not final:
            thought = thought if answer else _stable_part(thought, self._marks)
            answer = _stable_part(answer, self._marks)
        self._print(thought[len(self._thought) :], "dim italic")
        self._thought = max(self._thought, thought, key=len)
        if answer and not self._answer and self._thought:
            self._console.print()
        self._print(answer[len(self._answer) :], None)
        self._answer = max(self._answer, answer, key=len)

    def _print(self, text: str, style: str | None) -> None:
        if text:
            self._console.print(text, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)


def _stable_part(text: str, marks: Sequence[str]) -> str:
    """Return the text without a last part that can still change.

    The last part of a text can still change if the part is an incomplete character or an incomplete mark of a thought,
    such as `</thi`.
    """
    text = text.rstrip("\ufffd")
    for tag in marks:
        for n in range(len(tag), 0, -1):
            if text.endswith(tag[:n]):
                return text[:-n]
    return text
