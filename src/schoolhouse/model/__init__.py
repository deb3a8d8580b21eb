"""The decoder, its KV cache, kernels and checkpoints: everything that knows the tensors of a model."""

import os

# oneDNN caches a compiled kernel and its scratch memory for each input shape, by default for 1,024 of them. Packed
# batches hardly ever have the same shape twice: with 1,024, fine-tuning a model of 0.9M parameters grew by 0.7 GB in
# 100 steps. With 64 it is no slower (docs/lab.md). oneDNN reads the variable when it makes its first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
