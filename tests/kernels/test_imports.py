"""What importing the kernels needs."""

from __future__ import annotations

import os
import subprocess
import sys


def test_triton_is_not_needed() -> None:
    """A Mac has no Triton: kernels and models must import without it, and without compiling anything."""
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"  # import triton → ImportError
        "from luthier.kernels import attention, linear_cross_entropy, rms_norm, rope, swiglu\n"
        "from luthier.models import checkpoints, generate, transformer\n"
        "assert 'torch._dynamo' not in sys.modules, 'torch.compile was loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
