"""The fixtures of tiny_models.py: tiny decoders, prompts and a tokenizer."""

from tiny_models import *  # noqa: F403
