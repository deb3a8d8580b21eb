"""Thoughts on a scripted policy: what is offered, what it costs, and what cannot be read is lost, not believed."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import pytest

from schoolhouse.data.steps import steps
from schoolhouse.search.thoughts import (
    ExactValue,
    LookaheadValue,
    PromptedValue,
    RandomValue,
    ThoughtProposer,
    ThoughtSampler,
    VoteValue,
)
from schoolhouse.search.tree import Answered, Node
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout, SchoolError

Make = Callable[..., Any]

GOOD = ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]
END = "</think>\\boxed{(13-9)*(10-4)}<|im_end|>"


def solver(question: str, begun: str, key: Key) -> str:
    """Says a right solution, whatever has been said of it; answers questions about numbers; sample 1 goes astray."""
    if question.startswith("What may be done"):
        return "13-9=4 (4 4 10)\nwhatever\n13+9=22 (4 10 22)<|im_end|>"
    if question.startswith("Can"):
        return ("sure" if "4 4 10" in question else "impossible") + "<|im_end|>"
    if key.sample % 2:
        return "<think>" * (not begun) + "never ending, never ending, never ending, never ending, never ending"
    whole = "<think>" + "\n".join(GOOD) + END
    return whole[len(begun) :]


def begin(policy: Any, game: Game24, sample: int = 0) -> Rollout:
    return policy.conversation.prompt_rollout(game.eval_problems()[0], Key(0, "t", 0, 0, sample))


def thought(policy: Any, game: Game24, *lines: str) -> Node:
    """A node behind some thoughts that were put into the policy's mouth."""
    node, rollout = Node(begin(policy, game)), begin(policy, game)
    for line in lines:
        rollout = policy.conversation.prefill_thought(rollout, line + "\n")
        node = Node(rollout, line, node)
    return node


# --- sampled


def test_a_sampled_thought_is_one_step_of_the_policys_own_turn(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((offers, tokens),) = ThoughtSampler(policy, game, samples=1)([Node(begin(policy, game))])
    (offer,) = offers
    assert (offer.text, offer.answers) == ("13-9=4 (4 4 10)", False)
    assert tokens == len(offer.state) - len(begin(policy, game))
    assert steps(policy.conversation, offer.state, "\n") == GOOD[:1]


def test_steps_go_on_in_one_turn_until_the_answer(scripted: Make, game: Game24):
    policy = scripted(solver)
    expand, node, said = ThoughtSampler(policy, game, samples=1), Node(begin(policy, game)), []
    while not node.is_answer:
        ((offers, _),) = expand([node])
        node = Node(offers[0].state, offers[0].text, node, offers[0].answers)
        said.append(offers[0].text)
    assert said[:2] == GOOD[:2]
    assert len(node.state.turns) == 1
    reply = policy.conversation.parse_completion(node.state)
    assert (reply.thought, reply.answer) == ("\n".join(GOOD), "\\boxed{(13-9)*(10-4)}")
    assert game.grade(node.state.problem, reply).reward == 1.0


def test_a_step_that_never_ends_is_lost_and_paid_for(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((offers, tokens),) = ThoughtSampler(policy, game, samples=2, step_tokens=20)([Node(begin(policy, game))])
    assert [offer.text for offer in offers] == [GOOD[0]]
    assert tokens > 20


def test_without_room_in_the_model_there_is_no_thought_and_none_at_all_is_an_error(scripted: Make, game: Game24):
    policy, deep = scripted(solver), thought(scripted(solver), game, GOOD[0], GOOD[1])
    policy.max_seq_len = len(begin(policy, game)) + 10
    assert ThoughtSampler(policy, game, samples=2)([deep]) == [([], 0)]
    with pytest.raises(SchoolError, match="no room for a step of 32 and an answer: lower `step`"):
        ThoughtSampler(policy, game, samples=2)([Node(begin(policy, game))])
    assert policy.calls == []


def test_an_answer_takes_what_room_is_left(scripted: Make, game: Game24):
    policy = scripted(solver)
    last = thought(policy, game, *GOOD[:2])
    policy.max_seq_len = len(last.state) + 32 + 20
    ((offers, _),) = ThoughtSampler(policy, game, samples=1, answer_tokens=128)([last])
    assert len(offers) == 1


def test_every_path_has_random_numbers_of_its_own(scripted: Make, game: Game24):
    keys = []

    def listening(question: str, begun: str, key: Key) -> str:
        keys.append(key)
        return solver(question, begun, key._replace(sample=0))

    policy = scripted(listening)
    expand, level = ThoughtSampler(policy, game, samples=3), [Node(begin(policy, game))]
    for _ in range(2):
        level = [
            Node(o.state, o.text, node) for node, (offers, _) in zip(level, expand(level), strict=True) for o in offers
        ]
    assert len(keys) == len(set(keys)) == 3 + 9


# --- proposed


def test_proposals_are_put_into_the_policys_mouth(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((offers, tokens),) = ThoughtProposer(policy, game)([Node(begin(policy, game))])
    assert [offer.text for offer in offers] == ["13-9=4 (4 4 10)", "13+9=22 (4 10 22)"]
    assert [steps(policy.conversation, offer.state, "\n") for offer in offers] == [[offer.text] for offer in offers]
    assert not any(any(offer.state.loss_mask) for offer in offers)
    said = policy.conversation.tokenizer.encode("13-9=4 (4 4 10)\nwhatever\n13+9=22 (4 10 22)")
    assert tokens == len(said) + 1


def test_where_nothing_is_left_to_ask_the_policy_answers(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: END)
    ((offers, _),) = ThoughtProposer(policy, game)([thought(policy, game, *GOOD)])
    (offer,) = offers
    assert offer.answers
    assert policy.conversation.parse_completion(offer.state).answer == "\\boxed{(13-9)*(10-4)}"


def test_the_last_proposal_ends_the_thought_as_in_worked_examples(scripted: Make, game: Game24):
    """Else the model would go on with one more step, as after every new line that it has seen."""
    policy = scripted(lambda question, begun, key: f"{GOOD[-1]}<|im_end|>")
    ((offers, _),) = ThoughtProposer(policy, game)([thought(policy, game, *GOOD[:-1])])
    text = policy.conversation.tokenizer.decode(offers[0].state.tokens)
    assert text.endswith(f"{GOOD[-2]}\n{GOOD[-1]}</think>")
    assert steps(policy.conversation, offers[0].state, "\n") == GOOD


def test_several_lists_are_one_list_without_repeats(scripted: Make, game: Game24):
    lists = ["13-9=4 (4 4 10)\n13+9=22 (4 10 22)", "13+9=22 (4 10 22)\n10-4=6 (6 9 13)"]
    policy = scripted(lambda question, begun, key: lists[key.sample % 2] + "<|im_end|>")
    expand = ThoughtProposer(policy, game, num_proposals=2)
    ((offers, tokens),) = expand([Node(begin(policy, game))])
    assert [offer.text for offer in offers] == ["13-9=4 (4 4 10)", "13+9=22 (4 10 22)", "10-4=6 (6 9 13)"]
    assert len({offer.state.key for offer in offers}) == 3
    assert tokens == sum(len(policy.conversation.tokenizer.encode(text)) + 1 for text in lists)
    assert expand.max_tokens == 2 * expand.proposal_tokens


def test_proposals_to_the_same_end_are_one_thought(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: "4*6=24 (10 24)\n6*4=24 (10 24)<|im_end|>")
    ((offers, _),) = ThoughtProposer(policy, game)([thought(policy, game, "10-4=6 (4 6 10)")])
    assert offers[0].same == offers[1].same


# --- what thoughts are worth


def test_the_policys_word_is_asked_several_times_and_summed(scripted: Make, game: Game24):
    policy = scripted(solver)
    ask = PromptedValue(policy, game, samples=3)
    good, bad = thought(policy, game, "13-9=4 (4 4 10)"), thought(policy, game, "13+9=22 (4 10 22)")
    worth = ask([good, bad])
    assert [answered.found for answered in worth] == pytest.approx([60.0, 0.003])
    assert all(answered.tokens > 3 for answered in worth)


def test_the_same_question_is_paid_for_once(scripted: Make, game: Game24):
    policy = scripted(solver)
    ask, node = PromptedValue(policy, game), thought(policy, game, "13-9=4 (4 4 10)")
    first, second = ask([node, node])
    (third,) = ask([node])
    assert (first.found, second.found, third.found) == (60.0, 60.0, 60.0)
    assert (second.tokens, third.tokens) == (0, 0)


def test_a_word_out_of_range_counts_nothing(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: "1e9<|im_end|>")
    assert PromptedValue(policy, game)([thought(policy, game, GOOD[0])])[0].found == 0.0


def test_an_answer_is_worth_what_the_thought_before_it_is(scripted: Make, game: Game24):
    policy = scripted(solver)
    before = thought(policy, game, GOOD[0])
    answer = Node(before.state.prefill([5]), "24", before, is_answer=True)
    ask = PromptedValue(policy, game)
    (worth,), (again,) = ask([before]), ask([answer])
    assert (again.found, again.tokens) == (worth.found, 0)
    root = Node(begin(policy, game))
    assert isnan(PromptedValue(policy, game)([Node(before.state, "24", root, is_answer=True)])[0].found)


def test_votes_are_shares_among_thoughts_about_one_problem(scripted: Make, game: Game24):
    questions = []

    def elects(question: str, begun: str, key: Key) -> str:
        questions.append(question)
        return f"{(1, 2, 2, 9)[key.sample % 4]}<|im_end|>"

    policy = scripted(elects)
    lines = (GOOD[0], "13+9=22 (4 10 22)", "10-4=6 (6 9 13)", "10*4=40 (9 13 40)")
    few = [thought(policy, game, line) for line in lines]
    again = thought(policy, game, GOOD[0])
    worth = VoteValue(policy, game, samples=4, ballot_size=2)([*few, again])
    assert [answered.found for answered in worth] == [0.25, 0.25, 0.5, 0.5, 0.25]
    assert questions[0] == "Which of these can make 24?\n1: 4 4 10\n2: 6 9 13"
    assert questions[4] == "Which of these can make 24?\n1: 4 10 22\n2: 9 13 40"
    assert [answered.tokens > 0 for answered in worth] == [True, True, False, False, False]
    answer = Node(few[0].state.prefill([5]), "24", few[0], is_answer=True)
    assert [answered.found for answered in VoteValue(policy, game, samples=4)([answer, few[1]])] == [0.25, 0.5]


def test_looking_ahead_to_an_answer_judges_the_thought_before_it(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: solver(q, b, k._replace(sample=0)))
    judge = LookaheadValue(ThoughtSampler(policy, game, 1, 40, 40, 0.0), ExactValue(policy.conversation, game), steps=3)
    ((worth, _),) = judge([thought(policy, game, *GOOD[:2])])
    assert worth == 1.0


def test_the_tasks_own_rules_are_exact(scripted: Make, game: Game24):
    policy = scripted(solver)
    nodes = [thought(policy, game, *GOOD[:2]), thought(policy, game, GOOD[0], "10+4=14 (4 14)")]
    assert [answered.found for answered in ExactValue(policy.conversation, game)(nodes)] == [1.0, 0.0]


@pytest.mark.parametrize(("answer", "worth"), [("(10-4)*(13-9)", 1.0), ("(10-4)+(13-9)", 0.0)])
def test_an_answer_behind_right_thoughts_is_graded_by_itself(scripted: Make, game: Game24, answer: str, worth: float):
    policy = scripted(solver)
    say = policy.conversation
    last = say.close_thought(thought(policy, game, *GOOD).state)
    words = [*say.tokenizer.encode(f"\\boxed{{{answer}}}"), min(say.stop_ids)]
    said = last.append_sampled(words, [0.0] * len(words), "stop", 0)
    assert ExactValue(say, game)([Node(said, parent=Node(last), is_answer=True)])[0].found == worth


@pytest.mark.parametrize(
    ("thought_said", "answer", "worth"),
    [("\n".join(GOOD), "(10-4)*(13-9)", 1.0), (GOOD[0], "4+9", 0.0), ("1+1=2 (2)", "(10-4)*(13-9)", 0.0)],
)
def test_a_whole_reply_needs_right_thoughts_and_a_right_answer(
    scripted: Make, game: Game24, thought_said: str, answer: str, worth: float
):
    policy = scripted(lambda q, b, k: f"<think>{thought_said}</think>\\boxed{{{answer}}}<|im_end|>")
    said = policy.extend([policy.conversation.prompt_rollout(game.eval_problems()[0], Key(0, "t"))], 200)
    assert ExactValue(policy.conversation, game)([Node(said[0])])[0].found == worth


def test_a_die_falls_the_same_way_again(scripted: Make, game: Game24):
    policy = scripted(solver)
    nodes = [Node(begin(policy, game, sample)) for sample in range(3)]
    assert RandomValue()(nodes) == RandomValue()(nodes)
    assert len({answered.found for answered in RandomValue()(nodes)}) == 3


def test_looking_ahead_judges_where_likely_steps_lead_and_counts_them(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: solver(q, b, k._replace(sample=0)))
    node = thought(policy, game, GOOD[0])
    seen: list[Node] = []

    class Last:
        most = 7

        def __call__(self, nodes: Sequence[Node]) -> list[Answered]:
            seen.extend(nodes)
            return [Answered(0.5, 7) for _ in nodes]

    judge = LookaheadValue(ThoughtSampler(policy, game, 1, 40, 40, 0.0), Last(), steps=2)
    ((worth, tokens),) = judge([node])
    (later,) = seen
    assert steps(policy.conversation, later.state, "\n")[:2] == GOOD[:2]
    assert (worth, tokens) == (0.5, len(later.state) - len(node.state) + 7)
    assert judge.max_tokens == 2 * (2 * 40 + 40) + 7


def test_blanks_in_front_of_a_thought_are_no_thought(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "<think>\n" if not b else "13-9=4 (4 4 10)\n")
    ((offers, _),) = ThoughtSampler(policy, game, samples=1)([Node(begin(policy, game))])
    assert [offer.text for offer in offers] == ["13-9=4 (4 4 10)"]
    assert steps(policy.conversation, offers[0].state, "\n") == ["13-9=4 (4 4 10)"]
    silent = scripted(lambda q, b, k: "<think>" * (not b) + "\n")
    ((nothing, _),) = ThoughtSampler(silent, game, samples=1)([Node(begin(silent, game))])
    assert nothing == []
