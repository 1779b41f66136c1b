"""What asv discovers, one file a subject; ``asv/`` beside this folder drives it. May import ``benchmarks.asv`` only.

asv imports this folder alone, as a package ``suites``, and asv's process must not have the repository's root on its
path: the ``variants`` of the commit that is measured are installed, and those beside ``benchmarks`` are today's.
So the package ``benchmarks`` is made known by its own place.
"""

import importlib.util
import sys
from pathlib import Path

if "benchmarks" not in sys.modules:
    _folder = Path(__file__).resolve().parents[1]
    _spec = importlib.util.spec_from_file_location(
        "benchmarks", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["benchmarks"])
