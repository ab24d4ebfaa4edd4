"""Triton kernels for the sparse products and the selection of training on a GPU (docs/kernels.md).

`backend` determines what a device can run, and does not import Triton. The other modules import Triton, and are
imported only where their kernels run. If ``TRITON_INTERPRET=1`` is set before, Triton's interpreter runs the kernels on
a CPU.
"""
