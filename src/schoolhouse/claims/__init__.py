"""Each file tests one published effect. A file defines the arms, the premise, and the rule of the verdict."""
