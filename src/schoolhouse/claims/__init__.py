"""One published effect, one file: its arms, its premise, and the rule of its verdict."""
