"""A policy samples, scores and learns with one copy of the weights."""
