"""One thread per process where the tests already run one process per core: two would only wait for each other."""

import os

if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
