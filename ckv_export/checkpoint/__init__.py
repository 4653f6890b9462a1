"""Checkpoints: a file or run folder in, a `ModelSpec` and its tensors out.

`load.load_checkpoint` reads both kinds, native and FuxiCTR; `native.save_native` writes
native ones. Loading never executes code from a file.
"""
