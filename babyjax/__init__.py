"""babyjax: the language-model ladder in JAX, from counting to GPT.

The public names are listed in `__init__.pyi`. Each is imported when first used, so that `--help` need not wait for JAX.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
