"""The decoder and everything else that knows the tensors of a model."""

import os

# oneDNN keeps a compiled kernel and its scratch memory for each shape it ever met, 1,024 of them. Packed batches
# hardly ever have the same shape twice: with 1,024, fine-tuning a model of 0.9M parameters grew by 0.7 GB in 100 steps;
# with 64 it is no slower (docs/lab.md). Read when the first kernel is made, so a value set outside still wins.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
