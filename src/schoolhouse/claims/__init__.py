"""One published effect, one file: its arms, the premise without which nothing is shown, and the rule of the verdict."""
