"""A drop-in for the standard library's `multiprocessing` on a Rust core.

    import procession as multiprocessing

What isn't built yet can be imported, and raises `NotImplementedError` when it is used.
"""

from . import _core, context, process, util

# The default context's methods are this package's functions.
__all__ = [name for name in dir(context._default_context) if not name.startswith('_')]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

SUBDEBUG = util.SUBDEBUG
SUBWARNING = util.SUBWARNING

__version__ = _core.__version__
