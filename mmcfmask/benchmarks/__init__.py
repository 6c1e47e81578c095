"""Speed of the training step, of the test loop and of reading images, measured and counted.

Only the scripts ``tools/benchmark.py`` and ``tools/benchmark_data.py`` use this room, so nothing below imports it.
"""
