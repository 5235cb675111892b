"""Named blocks of memory, as the standard library's `multiprocessing.shared_memory`: not built yet."""

__all__ = ['SharedMemory', 'ShareableList']

from . import _unbuilt

SharedMemory = _unbuilt.unbuilt_class('SharedMemory', __name__)
ShareableList = _unbuilt.unbuilt_class('ShareableList', __name__)
