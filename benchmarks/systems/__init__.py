"""Other people's text-to-video systems, beside which ours is measured: `benchmarks/compare_systems.py`."""
