"""What is said while code is compiled."""

import subprocess
import sys

PROGRAM = """
import sys
from luthier.core.compiling import announce_compiling
from luthier.tokenizers.machine_code import on_compile
for _ in range(2):
    announce_compiling(numba=False)
assert len(on_compile) == 1
for _ in range(2):
    on_compile[0]()
print("numba" in sys.modules)
"""


def test_compiling_is_said_once_and_numba_is_not_started_for_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and done.stderr.count("compiling") == 1
