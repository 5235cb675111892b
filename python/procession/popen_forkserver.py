"""Starting a process by a fork server, as the standard library's `multiprocessing.popen_forkserver`: not built yet."""

__all__ = ['Popen']

from . import _unbuilt

Popen = _unbuilt.unbuilt_class('Popen', __name__)
