"""The policy: sampling, scoring and learning with one copy of the weights."""
