"""The service around the science: server, client and command line."""

import os

# OpenMP's threads spin while they wait for work. Without a bound, processes that spin on the same cores starve each
# other (a call of 128 rows took six times as long beside a busy process); without any spin, a call of 16 rows on idle
# cores took twice as long. A short one costs little in both. libgomp reads this when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
