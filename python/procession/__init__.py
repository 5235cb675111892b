"""A drop-in for the standard library's `multiprocessing` on a Rust core.

    import procession as multiprocessing

What isn't built yet can be imported, and raises `NotImplementedError` when it is used.
"""

from . import _core, context, process, util

# The default context's methods are this package's functions.
__all__ = [name for name in dir(context._default_context) if not name.startswith('_')]
globals().update((name, getattr(context._default_context, name)) for name in __all__ if name not in context._EXCEPTIONS)


def __getattr__(name):
    # The exceptions are the standard library's, which is loaded when somebody names one.
    if name in context._EXCEPTIONS:
        return getattr(context, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return [*globals(), *context._EXCEPTIONS]


SUBDEBUG = util.SUBDEBUG
SUBWARNING = util.SUBWARNING

__version__ = _core.__version__
