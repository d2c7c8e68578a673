"""Two workers share the cores (pytest-xdist), so each keeps torch to one thread.

``pytest -n 0`` runs everything in one process, for debugging.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
