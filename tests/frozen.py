"""Imported last: what is imported by then stays, so whoever collects garbage need not look at it again."""

import gc

gc.collect()
gc.freeze()
