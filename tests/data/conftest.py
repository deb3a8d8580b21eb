"""A tokenizer and a conversation for the tests of this folder."""

from tiny_tokenizer import *  # noqa: F403
