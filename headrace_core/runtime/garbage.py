"""Python's cyclic garbage collector, set for a service: what it was started with is never looked at again.

By default the youngest objects are searched for cycles after every 700 allocations, and everything there is, a hundred
thousand objects of libraries included, again and again. A service makes and drops hundreds of objects for each task,
hardly ever in cycles: the searches were a tenth of its CPU.
"""

import gc

YOUNG, MIDDLE, OLD = 20_000, 20, 20
"""Allocations before a search of the youngest objects, and such searches before one of the older ones."""


def settle() -> None:
    """Call once, when everything that stays has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
