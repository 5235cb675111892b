"""Threads under the names of processes, as the standard library's `multiprocessing.dummy`: not built yet."""

__all__ = ['Process', 'current_process', 'active_children', 'freeze_support', 'Lock', 'RLock', 'Semaphore',
           'BoundedSemaphore', 'Condition', 'Event', 'Barrier', 'Queue', 'Manager', 'Pipe', 'Pool', 'JoinableQueue']

from .. import _unbuilt
from . import connection  # noqa: F401

DummyProcess = Process = _unbuilt.unbuilt_class('DummyProcess', __name__)
Namespace = _unbuilt.unbuilt_class('Namespace', __name__)
Value = _unbuilt.unbuilt_class('Value', __name__)
Array = _unbuilt.unbuilt_function('Array', __name__)
shutdown = _unbuilt.unbuilt_function('shutdown', __name__)
for _name in __all__[1:]:
    globals()[_name] = _unbuilt.unbuilt_function(_name, __name__)
del _name
