"""Tiny decoders, prompts and a tokenizer for the tests of this folder."""

from tiny_models import *  # noqa: F403
