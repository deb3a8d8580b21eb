"""All code that works on the tensors of a model: the decoder, its KV cache, its kernels and its checkpoints."""

import os

# oneDNN caches a compiled kernel and its scratch memory for each input shape, by default for 1,024 shapes. Packed
# batches almost never have the same shape twice. With 1,024 shapes, the memory of fine-tuning a model of 0.9M
# parameters grew by 0.7 GB in 100 steps. With 64 shapes, fine-tuning is not slower (docs/lab.md). oneDNN reads the
# variable when it creates its first kernel.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
