"""Speed as a ratio: we and a peer take turns on the same work in the same minutes. See work.py and race.py."""
