"""Locks between processes. See the standard library's `multiprocessing.synchronize`.

`Lock` is the compiled class itself. The standard's lives on when its holder is killed, held for ever; this one goes to
the next `acquire()`, which gets a `RuntimeWarning` with it. It can be pickled at any time, not only for a child.
"""

__all__ = ['Lock', 'RLock', 'Semaphore', 'BoundedSemaphore', 'Condition', 'Event']

from . import _core, _unbuilt

SEM_VALUE_MAX = 2**31 - 1
RECURSIVE_MUTEX, SEMAPHORE = range(2)

Lock = _core.Lock

RLock = _unbuilt.unbuilt_class('RLock', __name__)
Semaphore = _unbuilt.unbuilt_class('Semaphore', __name__)
BoundedSemaphore = _unbuilt.unbuilt_class('BoundedSemaphore', __name__)
Condition = _unbuilt.unbuilt_class('Condition', __name__)
Event = _unbuilt.unbuilt_class('Event', __name__)
Barrier = _unbuilt.unbuilt_class('Barrier', __name__)
SemLock = _unbuilt.unbuilt_class('SemLock', __name__)
