"""Descriptors sent to any process. See the standard library's `multiprocessing.resource_sharer`."""

__all__ = ['stop', 'DupFd']

from ._core import DupFd, stop_sharing


def stop(timeout=None):
    """Closes what is kept for others and ends the thread that gives it to them, which takes no time that could be limited."""
    stop_sharing()
