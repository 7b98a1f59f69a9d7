"""A plugin for pytest: imports fail as on a GPU machine without a network, which has torch and little else.

python -m pytest -p tests.support.bare_machine ...
"""

import os
import sys

# Packages that the project uses and such a machine lacks.
MISSING = ("docstring_parser", "matplotlib", "pandas", "pydantic", "pydantic_core", "tqdm", "tyro")

os.environ["FASTGAN_TEST_BARE"] = "1"  # read by tests/conftest.py
sys.modules.update(dict.fromkeys(MISSING))  # the import of a module that is None there fails
