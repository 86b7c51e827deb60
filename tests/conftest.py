"""Before all tests: where there is no GPU, its kernels run in Triton's interpreter.

Triton looks for this when it is first imported, which the library of any other test may do.
"""

import os
from pathlib import Path

if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"
