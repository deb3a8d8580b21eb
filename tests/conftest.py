"""What holds for every test: nothing is fetched, one thread a process, the same examples on every run."""

import os

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one process a core already
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
