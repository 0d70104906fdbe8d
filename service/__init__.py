"""The service around the science: server, client and command line."""

import ctypes
import os
import platform

# OpenMP's threads spin while they wait for work. Without a bound, processes that spin on the same cores starve each
# other (a call of 128 rows took six times as long beside a busy process); without any spin, a call of 16 rows on idle
# cores took twice as long. A short one costs little in both. libgomp reads this when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# glibc hands the memory of large tensors back to the system as soon as they are freed, most eagerly in threads, and
# every forward pass pays for getting it again, page by page: 22,000 page faults and a fifth of its time.
if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
    _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
    _libc = ctypes.CDLL(None)
    _libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    _libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
    _libc.mallopt(_M_ARENA_MAX, 1)
