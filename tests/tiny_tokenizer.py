"""A tokenizer trained on a few sentences, and a conversation with it."""

from __future__ import annotations

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "Emily buys 3 apples and 2 oranges; each orange costs $2; the total is $13.\n",
    "What does an apple cost? 13 - 4 = 9, and 9 / 3 = 3, so an apple costs 3.\n\nThat is right.\n",
    "the cat and the other cat think about the end of the text <| |> im_end think\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, 400)


@pytest.fixture(scope="session")
def conversation(tokenizer: Tokenizer) -> Conversation:
    return Conversation(tokenizer)
