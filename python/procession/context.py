"""Contexts: one API for each start method. See the standard library's `multiprocessing.context`."""

import os
import sys
import threading

from . import _standard, process, reduction

__all__ = ()

#: The standard exceptions are ours too, so that `except multiprocessing.TimeoutError` catches either.
_EXCEPTIONS = ('ProcessError', 'BufferTooShort', 'TimeoutError', 'AuthenticationError')


def __getattr__(name):
    if name in _EXCEPTIONS:
        return getattr(_standard.context, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


class _Exception:
    """One of them, as a class has it."""

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner):
        return getattr(_standard.context, self._name)


class BaseContext:
    """What a context offers, whatever its start method."""

    ProcessError, BufferTooShort, TimeoutError, AuthenticationError = (_Exception() for _ in _EXCEPTIONS)

    current_process = staticmethod(process.current_process)
    parent_process = staticmethod(process.parent_process)
    active_children = staticmethod(process.active_children)

    def cpu_count(self):
        """The number of processors of the machine."""
        count = os.cpu_count()
        if count is None:
            raise NotImplementedError('cannot determine number of cpus')
        return count

    def Lock(self):
        """A lock between processes; a dead holder never blocks the living."""
        from .synchronize import Lock
        return Lock(ctx=self.get_context())

    def Queue(self, maxsize=0):
        """A queue between processes, without a feeder thread."""
        from .queues import Queue
        return Queue(maxsize, ctx=self.get_context())

    def Pipe(self, duplex=True):
        """Two connected `Connection` objects."""
        from .connection import Pipe
        return Pipe(duplex)

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None):
        """A pool of worker processes."""
        from .pool import Pool
        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    def RLock(self):
        from .synchronize import RLock
        return RLock(ctx=self.get_context())

    def Condition(self, lock=None):
        from .synchronize import Condition
        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value=1):
        from .synchronize import Semaphore
        return Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value=1):
        from .synchronize import BoundedSemaphore
        return BoundedSemaphore(value, ctx=self.get_context())

    def Event(self):
        from .synchronize import Event
        return Event(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        from .synchronize import Barrier
        return Barrier(parties, action, timeout, ctx=self.get_context())

    def JoinableQueue(self, maxsize=0):
        from .queues import JoinableQueue
        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self):
        from .queues import SimpleQueue
        return SimpleQueue(ctx=self.get_context())

    def Manager(self):
        from .managers import SyncManager
        return SyncManager(ctx=self.get_context())

    def RawValue(self, typecode_or_type, *args):
        from .sharedctypes import RawValue
        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        from .sharedctypes import RawArray
        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        from .sharedctypes import Value
        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        from .sharedctypes import Array
        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def freeze_support(self):
        """Runs a child's part in a frozen executable; elsewhere nothing."""
        if getattr(sys, 'frozen', False):
            from .spawn import freeze_support
            freeze_support()

    def get_logger(self):
        """The package's logger, named `multiprocessing`."""
        from .util import get_logger
        return get_logger()

    def log_to_stderr(self, level=None):
        """Adds a handler that prints the package's log to stderr."""
        from .util import log_to_stderr
        return log_to_stderr(level)

    def allow_connection_pickling(self):
        """Makes connections picklable: loads what registers them."""
        from . import connection  # noqa: F401

    def set_executable(self, executable):
        """Sets the interpreter that spawned children run."""
        from .spawn import set_executable
        set_executable(executable)

    def set_forkserver_preload(self, module_names, *, on_error='ignore'):
        """Names the modules that the fork server is to import before it forks, and what it does about those that it can't."""
        from .forkserver import set_forkserver_preload
        set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method=None):
        """The context of that start method; this one for None."""
        if method is None:
            return self
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError('cannot find context for %r' % method) from None
        context._check_available()
        return context

    def get_start_method(self, allow_none=False):
        """The name of the start method."""
        return self._name

    def set_start_method(self, method, force=False):
        raise ValueError('cannot set start method of concrete context')

    @property
    def reducer(self):
        """What reduces objects so that they can be sent to another process."""
        return globals().get('reduction')

    @reducer.setter
    def reducer(self, reduction):
        globals()['reduction'] = reduction

    def _check_available(self):
        pass


class Process(process.BaseProcess):
    """A process, started in the way of the default context."""
    _start_method = None

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork():
        return _default_context.get_context().Process._after_fork()


class DefaultContext(BaseContext):
    """The context whose start method the program chooses, once."""

    Process = Process

    def __init__(self, context):
        self._default_context = context
        self._actual_context = None

    def get_context(self, method=None):
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(self, method, force=False):
        """Chooses the start method: once, unless forced; None with force forgets the choice."""
        if self._actual_context is not None and not force:
            raise RuntimeError('context has already been set')
        if method is None and force:
            self._actual_context = None
            return
        self._actual_context = self.get_context(method)

    def get_start_method(self, allow_none=False):
        if self._actual_context is None:
            if allow_none:
                return None
            self._actual_context = self._default_context
        return self._actual_context._name

    def get_all_start_methods(self):
        """The names of the start methods, the default first."""
        default = self._default_context._name
        return [default] + [name for name in ('fork', 'spawn', 'forkserver') if name != default]


_popen_fork = None


def _load_popen_fork():
    # Once: an import writes to two dozen pages, of which a parent shares each with its children.
    global _popen_fork
    from . import popen_fork as _popen_fork


class ForkProcess(process.BaseProcess):
    """A process that is started by fork."""
    _start_method = 'fork'

    @staticmethod
    def _Popen(process_obj):
        if _popen_fork is None:
            _load_popen_fork()
        return _popen_fork.Popen(process_obj)


class SpawnProcess(process.BaseProcess):
    """A process that is a fresh interpreter."""
    _start_method = 'spawn'

    @staticmethod
    def _Popen(process_obj):
        from .popen_spawn_posix import Popen
        return Popen(process_obj)

    @staticmethod
    def _after_fork():
        # A fresh interpreter has nothing of its parent's to forget.
        pass


class ForkServerProcess(process.BaseProcess):
    """A process that the fork server forks."""
    _start_method = 'forkserver'

    @staticmethod
    def _Popen(process_obj):
        from .popen_forkserver import Popen
        return Popen(process_obj)


class ForkContext(BaseContext):
    """Starts processes by fork."""
    _name = 'fork'
    Process = ForkProcess


class SpawnContext(BaseContext):
    """Starts processes as fresh interpreters."""
    _name = 'spawn'
    Process = SpawnProcess


class ForkServerContext(BaseContext):
    """Has the fork server start processes."""
    _name = 'forkserver'
    Process = ForkServerProcess


_concrete_contexts = {
    'fork': ForkContext(),
    'spawn': SpawnContext(),
    'forkserver': ForkServerContext(),
}
_default_context = DefaultContext(
    _concrete_contexts['fork' if sys.version_info < (3, 14) else 'forkserver'])


def _force_start_method(method):
    _default_context._actual_context = method and _concrete_contexts[method]


#
# The child that this thread is spawning, for those who are pickled meanwhile
#

_tls = threading.local()


def get_spawning_popen():
    """The `Popen` that this thread is pickling a child for, or None."""
    return getattr(_tls, 'spawning_popen', None)


def set_spawning_popen(popen):
    """Sets the `Popen` that this thread is pickling a child for."""
    _tls.spawning_popen = popen
    # Objects of the standard's own may go along: they ask their own module.
    if standard := _standard.loaded('context'):
        standard.set_spawning_popen(popen)


def assert_spawning(obj):
    """Raises RuntimeError unless this thread is pickling a child."""
    if get_spawning_popen() is None:
        raise RuntimeError(
            '%s objects should only be shared between processes through inheritance'
            % type(obj).__name__)
