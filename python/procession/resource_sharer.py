"""Descriptors sent to any process, as the standard library's `multiprocessing.resource_sharer`: not built yet."""

__all__ = ['stop', 'DupFd']

from . import _unbuilt

DupFd = _unbuilt.unbuilt_class('DupFd', __name__)


def stop(timeout=None):
    """Stops sharing: there is nothing to stop."""
