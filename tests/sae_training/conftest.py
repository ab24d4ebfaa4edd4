"""Where the GPU kernels run in these tests: on the GPU where there is one, in Triton's interpreter otherwise.

The environment of the interpreter is set in the suite's conftest, before anything imports Triton.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """The device that the Triton kernels run on here; skips where Triton is not installed."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
