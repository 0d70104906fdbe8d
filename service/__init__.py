"""The service around the science: server, client and command line."""

import os

# OpenMP's threads spin while they wait for work, and several processes that spin on the same cores starve each other:
# an audit of 2 seconds beside a busy process took 67. The variable is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
