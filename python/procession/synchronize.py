"""Synchronisation between processes. See the standard library's `multiprocessing.synchronize`.

Ours can be pickled at any time, not only for a child, and nobody waits for the dead: a lock whose holder was killed goes
to the next `acquire()`, with a `RuntimeWarning`; permits come back; a barrier breaks; a dead waiter isn't counted.
"""

import tempfile
import threading
import time

from . import _core, process

__all__ = ['Lock', 'RLock', 'Semaphore', 'BoundedSemaphore', 'Condition', 'Event']

SEM_VALUE_MAX = 2**31 - 1
RECURSIVE_MUTEX, SEMAPHORE = range(2)

Lock = _core.Lock
RLock = _core.RLock
Semaphore = _core.Semaphore
BoundedSemaphore = _core.BoundedSemaphore
Event = _core.Event


class SemLock:
    """The standard's base class of locks. Ours has one inside, and neither has a name in the system."""

    _rand = tempfile._RandomNameSequence()

    def __init__(self, kind, value, maxvalue, *, ctx):
        cls = BoundedSemaphore if maxvalue == value else Semaphore
        self._semlock = RLock(ctx=ctx) if kind == RECURSIVE_MUTEX else cls(value, ctx=ctx)
        self.acquire, self.release = self._semlock.acquire, self._semlock.release

    @staticmethod
    def _make_name():
        return f"{process.current_process()._config['semprefix']}-{next(SemLock._rand)}"


def _owner(lock):
    """Who holds a lock, in the words of the standard's `__repr__`."""
    if lock._is_mine():
        name = process.current_process().name
        if threading.current_thread() is not threading.main_thread():
            name += '|' + threading.current_thread().name
        return name
    if lock._get_value() == 1:
        return 'None'
    return 'SomeOtherThread' if getattr(lock, '_is_in_this_process', bool)() else 'SomeOtherProcess'


def _rlock_repr(self):
    owner = _owner(self)
    return f"<{type(self).__name__}({owner}, {'nonzero' if owner.startswith('SomeOther') else self._count()})>"


class _Semlock:
    """What the standard's `_semlock` can be asked for: the lock itself, and that it has no name."""

    name, handle = None, 0

    def __init__(self, lock):
        self._lock = lock
        self.kind = RECURSIVE_MUTEX if isinstance(lock, RLock) else SEMAPHORE
        self.maxvalue = lock.maxvalue if isinstance(lock, Semaphore) else 1

    def __getattr__(self, name):
        return getattr(self._lock, name)

    def _is_zero(self):
        return self._lock._get_value() == 0

    def _after_fork(self):
        """Nothing: what a forked child may think of its parent's locks is known without it."""


# What Python decides of the compiled classes: how they look, and the standard's private name.
Lock.__repr__ = lambda self: f'<{type(self).__name__}(owner={_owner(self)})>'
RLock.__repr__ = _rlock_repr
Semaphore.__repr__ = lambda self: f'<{type(self).__name__}(value={self.get_value()})>'
BoundedSemaphore.__repr__ = lambda self: f'<{type(self).__name__}(value={self.get_value()}, maxvalue={self.maxvalue})>'
Event.__repr__ = lambda self: f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"
Lock._semlock = RLock._semlock = Semaphore._semlock = property(_Semlock)


class _Count:
    """What the standard counts in a semaphore."""

    def __init__(self, count):
        self.get_value = count


class Condition:
    """A lock, and a place where its holders wait for each other's word."""

    def __init__(self, lock=None, *, ctx):
        self.__setstate__((lock or ctx.RLock(), _core.Waiters()))

    def __getstate__(self):
        return self._lock, self._waiters

    def __setstate__(self, state):
        self._lock, self._waiters = state
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *args):
        return self._lock.__exit__(*args)

    def __repr__(self):
        return f'<{type(self).__name__}({self._lock}, {self._waiters.get_value()})>'

    # The standard's three semaphores: who sleeps, who of them was woken, and what for.
    _sleeping_count = property(lambda self: _Count(self._waiters.get_value))
    _woken_count = _wait_semaphore = property(lambda self: _Count(int))

    def wait(self, timeout=None):
        """Frees the lock, waits for a notification, and takes the lock again; false if the time passed first."""
        assert self._lock._is_mine(), 'must acquire() condition before using wait()'
        return self._waiters.wait(self._lock, timeout)

    def wait_for(self, predicate, timeout=None):
        """Waits until a predicate is true; what it was last."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n=1):
        """Wakes at most n of those who wait, who came first."""
        assert self._lock._is_mine(), 'lock is not owned'
        self._waiters.notify(n)

    def notify_all(self):
        """Wakes all who wait."""
        self.notify(2**63 - 1)


class Barrier(threading.Barrier):
    """A place where a number of processes wait until all of them are there, again and again."""

    def __init__(self, parties, action=None, timeout=None, *, ctx):
        self.__setstate__((_core.Barrier(parties), action, timeout))

    def __getstate__(self):
        return self._barrier, self._action, self._timeout

    def __setstate__(self, state):
        self._barrier, self._action, self._timeout = state

    def __repr__(self):
        state = 'broken' if self.broken else f'waiters={self.n_waiting}/{self.parties}'
        return f'<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {state}>'

    parties = property(lambda self: self._barrier.parties)
    n_waiting = property(lambda self: self._barrier.n_waiting)
    broken = property(lambda self: self._barrier.broken)

    def wait(self, timeout=None):
        """Waits until all are there; how many had come before."""
        return self._barrier.wait(self._action, self._timeout if timeout is None else timeout)

    def reset(self):
        """Makes it whole and empty; those who wait get the exception `BrokenBarrierError`."""
        self._barrier.reset()

    def abort(self):
        """Breaks it: those who wait, and those who come, get the exception `BrokenBarrierError`."""
        self._barrier.abort()
