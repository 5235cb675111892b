"""The standard library's own modules, whatever the name `multiprocessing` means by the time somebody looks.

This is the one place that imports them: `_alias` may put this package in their place afterwards.
"""

__all__ = []

from multiprocessing import context, process, reduction  # noqa: F401
