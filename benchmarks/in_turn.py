"""Commands of contentmotion, a line each on standard input, one after the other in one process: what is imported, and a
GPU's first touch, is paid for once. Each is timed; where one fails, the rest is left out, and so does this.

    printf '%s\\n' 'encode --config configs/emoji/encode.yaml ...' 'info outputs/cache' | python benchmarks/in_turn.py
"""

import shlex
import sys
import time

from contentmotion.cli import main

begun = time.perf_counter()
for line in sys.stdin:
    words = shlex.split(line, comments=True)
    if not words:
        continue
    print(f"== {time.perf_counter() - begun:.0f} s: {words[0]}", flush=True)
    if status := main(words):
        sys.exit(status)
print(f"== {time.perf_counter() - begun:.0f} s: done", flush=True)
