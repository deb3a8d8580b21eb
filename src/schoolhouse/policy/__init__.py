"""The policy: what samples, scores and learns."""
