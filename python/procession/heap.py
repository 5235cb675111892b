"""Memory in the form of the standard library's `multiprocessing.heap`: not built yet."""

__all__ = ['BufferWrapper']

from . import _unbuilt

Arena = _unbuilt.unbuilt_class('Arena', __name__)
Heap = _unbuilt.unbuilt_class('Heap', __name__)
BufferWrapper = _unbuilt.unbuilt_class('BufferWrapper', __name__)
reduce_arena = _unbuilt.unbuilt_function('reduce_arena', __name__)
rebuild_arena = _unbuilt.unbuilt_function('rebuild_arena', __name__)
