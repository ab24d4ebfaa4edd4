"""Dictionary learning over the activations of several models at once: tensors in, dictionary out.

``__init__.pyi`` lists the public names. They are imported on first use, so that ``import sae_training`` does not import
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
