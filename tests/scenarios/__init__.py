"""Proofs at full size, run by hand: `python -m tests.scenarios.<name>`. Each prints figures and exits 1 on a miss."""
