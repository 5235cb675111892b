"""Queues between processes. See the standard library's `multiprocessing.queues`.

There is no feeder thread: `put` has stored the object when it returns, so joining a process that has put something
never waits for somebody to get it. An object that can't be pickled is reported as the standard's feeder thread
does, by `_on_queue_feeder_error`.
"""

__all__ = ['Queue', 'SimpleQueue', 'JoinableQueue']

import collections
import types
from queue import Empty, Full  # noqa: F401

from . import _core

#: What ends a feeder thread of the standard's; for classes that have one of their own.
_sentinel = object()


class _Kind(type):
    """A class that replaces a part of the standard's queues, as loky's do (their feeder thread pickles with cloudpickle), is
    given all of the standard's to replace it in: on pipes and locks of ours, and as fast as those queues are."""

    def __new__(cls, name, bases, namespace, **options):
        if not any(base.__module__ == __name__ and base._replaceable in namespace for base in bases):
            return super().__new__(cls, name, bases, namespace, **options)
        from . import _fed
        bases = [getattr(_fed.queues, base.__name__) if base.__module__ == __name__ else base for base in bases]
        return types.new_class(name, tuple(bases), options, lambda empty: empty.update(namespace))


class _Count:
    """A number that the standard keeps in a semaphore, for those who look at it there."""

    def __init__(self, get_value):
        self.get_value = get_value


class Queue(_core.Queue, metaclass=_Kind):
    """A queue of objects for any number of processes and threads."""

    #: Whoever starts a feeder thread has another way to pickle, and a buffer for it.
    _replaceable = '_start_thread'

    __class_getitem__ = classmethod(types.GenericAlias)

    #: What the standard's feeder thread does when nobody reads any more; there is no such end here.
    _ignore_epipe = False
    #: There is no feeder thread.
    _thread = _jointhread = None
    _joincancelled = False

    _poll = property(lambda self: self._reader.poll)
    _recv_bytes = property(lambda self: self._reader.recv_bytes)
    _send_bytes = property(lambda self: self._writer.send_bytes)
    #: What was put and isn't in the queue yet: nothing ever is.
    _buffer = property(lambda self: collections.deque())
    #: The room that is left.
    _sem = property(lambda self: _Count(lambda: max(0, self._maxsize - self.qsize())))

    def __init__(self, maxsize=0, *, ctx):
        super().__init__(maxsize, ctx=ctx)

    def join_thread(self):
        """There is no thread to wait for: what was put is stored. Only after `close()`."""
        assert self._closed, f'Queue {self!r} not closed'

    def cancel_join_thread(self):
        """There is no thread that an exit would wait for."""

    def _terminate_broken(self):
        self.close()

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """Called with the error and the object when an object that was put can't be pickled."""
        import traceback
        traceback.print_exception(e)


class JoinableQueue(_core.JoinableQueue, Queue):
    """A queue that counts the objects that aren't done with: `task_done()` for each, `join()` waits for all."""

    _unfinished_tasks = property(lambda self: _Count(lambda: self._unfinished))

    def __init__(self, maxsize=0, *, ctx):
        super().__init__(maxsize, ctx=ctx)


class SimpleQueue(_core.SimpleQueue, metaclass=_Kind):
    """A queue of objects with nothing but `put` and `get`."""

    #: Whoever restores one has made it of two ends and two locks.
    _replaceable = '__setstate__'

    __class_getitem__ = classmethod(types.GenericAlias)

    def __init__(self, *, ctx):
        super().__init__(ctx=ctx)
        #: For subclasses that send and receive by the two ends; nothing here takes them.
        self._rlock, self._wlock = ctx.Lock(), ctx.Lock()

    def __getstate__(self):
        return super().__getstate__(), self._rlock, self._wlock

    def __setstate__(self, state):
        name, self._rlock, self._wlock = state
        super().__setstate__(name)

    @property
    def _poll(self):
        return self._reader.poll
