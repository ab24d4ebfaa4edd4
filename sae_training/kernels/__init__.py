"""The sparse products and the selection of training on a GPU, as Triton kernels (docs/kernels.md).

`backend` says what can run here and imports no Triton; the other modules import it and are imported only where their
kernels run. With ``TRITON_INTERPRET=1`` set before that, Triton's interpreter runs the same kernels on CPU tensors.
"""
