"""Benchmarks: the product and its references on the same machine, in interleaved rounds."""
