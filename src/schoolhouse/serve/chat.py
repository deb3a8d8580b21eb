"""Talk to a model in the terminal: what it thinks is dimmed, what it answers is plain, both appear as they are said."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from schoolhouse.data.tokenizer import END_THINK, THINK
from schoolhouse.policy.interface import Generator
from schoolhouse.types import Completion, Key, Message, Problem, Rollout, SchoolError

HELP = "/reset starts anew, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer, /help shows this"


def chat(
    policy: Generator,
    length: int,
    temperature: float,
    input_lines: Iterable[str] | None = None,
    console: Console | None = None,
    seed: int = 0,
) -> Rollout | None:
    """Talk until /quit or the end of input. Returns the conversation as it stood.

    An answer takes up to `length` tokens, or what the model can still read.

    `input_lines` stand in for the keyboard.
    """
    console = console or Console()
    lines = None if input_lines is None else iter(input_lines)
    console.print(HELP, style="dim")
    talk: Rollout | None = None
    talks = 0
    while True:
        try:
            line = console.input("[bold]> [/bold]") if lines is None else next(lines)
        except KeyboardInterrupt:
            console.print("\n" + HELP, style="dim")
            continue
        except (EOFError, StopIteration):
            console.print()
            return talk
        line = line.encode("utf-8", "replace").decode().strip()  # a terminal may hand over broken characters
        if line == "/quit":
            return talk
        if line == "/reset":
            talk = None
            console.print("a new conversation", style="dim")
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            if talk is None:
                key = Key(seed, "chat", problem=talks)
                asked = policy.conversation.prompt_rollout(Problem("chat", (Message("user", line),), ""), key)
                talks += 1
            else:
                asked = policy.conversation.append_messages(talk, [Message("user", line)])
            try:
                talk = _answer(policy, asked, length, temperature, console)
            except SchoolError as error:
                console.print(f"{error} (/reset starts anew)", style="red", markup=False)


def _answer(policy: Generator, asked: Rollout, length: int, temperature: float, console: Console) -> Rollout:
    """Let the policy speak and show it; what was said until Ctrl-C stays said."""
    screen = _Screen(console)
    tokens: list[int] = []
    logprobs: list[float] = []

    def so_far() -> Rollout:
        return asked.append_sampled(tokens, logprobs, "length", 0)

    def hear(_: int, token: int, logprob: float) -> None:
        tokens.append(token)
        logprobs.append(logprob)
        screen.show(policy.conversation.parse_completion(so_far()))

    room = max(1, min(length, policy.max_seq_len - len(asked)))
    try:
        (talk,) = policy.extend([asked], room, temperature=temperature, on_token=hear)
    except KeyboardInterrupt:
        talk = so_far()
    reply = policy.conversation.parse_completion(talk)
    screen.show(reply, final=True)
    console.print("" if reply.complete else " (cut off)", style="dim")
    return talk


class _Screen:
    """Prints of a growing reply what is new in it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._thought = self._answer = ""

    def show(self, reply: Completion, final: bool = False) -> None:
        thought, answer = reply.thought or "", reply.answer
        if not final:
            thought, answer = thought if answer else _settled(thought), _settled(answer)
        self._print(thought[len(self._thought) :], "dim italic")
        self._thought = max(self._thought, thought, key=len)
        if answer and not self._answer and self._thought:
            self._console.print()
        self._print(answer[len(self._answer) :], None)
        self._answer = max(self._answer, answer, key=len)

    def _print(self, text: str, style: str | None) -> None:
        if text:
            self._console.print(text, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)


def _settled(text: str) -> str:
    """A growing text without the end that may yet change: half a character, or the beginning of a tag."""
    text = text.rstrip("\ufffd")
    for tag in (THINK, END_THINK):
        for n in range(len(tag), 0, -1):
            if text.endswith(tag[:n]):
                return text[:-n]
    return text
