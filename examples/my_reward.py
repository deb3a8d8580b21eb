"""A reward function in TRL's signature: lists in, one number (or None: cannot say) for each completion out."""


def short_and_right(completions, reference, **kwargs):
    """1 for an answer that holds the reference, less for a long one. `reference` comes from the rows of the file."""
    rewards = []
    for completion, expected in zip(completions, reference, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        rewards.append(max(0.0, 1.0 - len(text) / 1000) if expected in text else 0.0)
    return rewards
