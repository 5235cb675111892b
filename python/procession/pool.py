"""Pools of worker processes. See the standard library's `multiprocessing.pool`.

Here are signatures, workers and exceptions; jobs, results and waiting are compiled (`_core`). Differences that can
be seen: the task of a worker that dies fails with an error that names how it died, and no other; `terminate()` fails
what is unanswered; a callback that raises becomes its job's error; workers don't end at Ctrl-C, their pool does.
"""

__all__ = ['Pool', 'ThreadPool']

import itertools
import os
import signal
import threading
import traceback
import types
import warnings

from . import _core, util
from .context import ProcessError, TimeoutError
from .reduction import ForkingPickler

INIT = 'INIT'
RUN = 'RUN'
CLOSE = 'CLOSE'
TERMINATE = 'TERMINATE'

#: Seconds that a worker gets to end after SIGTERM, before SIGKILL.
_GRACE = 5.0
#: Iterables of these types neither wait nor call user code: whoever drives may take items from them.
_PLAIN = frozenset((list, tuple, range, str, bytes, bytearray, dict, set, frozenset))

job_counter = itertools.count()

os.register_at_fork(after_in_child=_core.forget_pools)


def mapstar(args):
    return list(map(*args))


def starmapstar(args):
    return list(itertools.starmap(args[0], args[1]))


#
# Exceptions of other processes
#

class RemoteTraceback(Exception):
    """The cause of an exception from a worker: the text of the traceback there."""

    def __init__(self, tb):
        self.tb = tb

    def __str__(self):
        return self.tb


class ExceptionWithTraceback:
    """An exception whose pickle keeps its traceback, as text."""

    def __init__(self, exc, tb):
        self.exc = exc
        self.tb = '\n"""\n%s"""' % ''.join(traceback.format_exception(type(exc), exc, tb))

    def __reduce__(self):
        return rebuild_exc, (self.exc, self.tb)


def rebuild_exc(exc, tb):
    exc.__cause__ = RemoteTraceback(tb)
    return exc


class MaybeEncodingError(Exception):
    """Stands for a result or an exception that could not be sent."""

    def __init__(self, exc, value):
        self.exc = repr(exc)
        self.value = repr(value)
        super().__init__(self.exc, self.value)

    def __str__(self):
        return "Error sending result: '%s'. Reason: '%s'" % (self.value, self.exc)

    def __repr__(self):
        return '<%s: %s>' % (self.__class__.__name__, self)


class _WorkerLost(ProcessError):
    """The worker that ran the task died; `exitcode` is as a process has it."""

    def __init__(self, message, exitcode=None):
        super().__init__(message, exitcode)
        self.exitcode = exitcode

    def __str__(self):
        return self.args[0]


class _PoolBroken(ProcessError):
    """The pool's workers die as they start."""


class _PoolTerminated(ProcessError):
    """The pool was terminated before the task was done."""


def _describe(exitcode):
    if exitcode is None:
        return 'could not be started'
    if exitcode >= 0:
        return f'exited with status {exitcode}'
    try:
        return f'was killed by {signal.Signals(-exitcode).name}'
    except ValueError:
        return f'was killed by signal {-exitcode}'


#
# In a worker
#

def _failed(exc):
    """What a worker answers for a task that raised: the traceback's text, and a pickle."""
    both = ExceptionWithTraceback(exc, exc.__traceback__)
    try:
        return both.tb, bytes(ForkingPickler.dumps(exc))
    except Exception as error:
        return both.tb, bytes(ForkingPickler.dumps(MaybeEncodingError(error, exc)))


def _unsendable(error, value):
    """The same, for a result that can't be pickled or stored."""
    error = MaybeEncodingError(error, value)
    util.debug('Possible encoding error while sending result: %s' % error)
    return '', bytes(ForkingPickler.dumps(error))


def _stay(signum, frame):
    """At Ctrl-C the pool's own process decides; programs that a task starts have the usual handler."""


def worker(inqueue, outqueue, initializer=None, initargs=(), maxtasks=None, wrap_exception=False):
    if maxtasks is not None and not (isinstance(maxtasks, int) and maxtasks >= 1):
        raise AssertionError('Maxtasks {!r} is not valid'.format(maxtasks))
    if not isinstance(inqueue, _core.WorkerSeat):
        return _work(inqueue, outqueue, initializer, initargs, maxtasks, wrap_exception)
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _stay)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            inqueue.faulty(traceback.format_exc())
            raise
    inqueue.ready()
    completed = inqueue.serve(maxtasks, _failed, _unsendable)
    util.debug('worker exiting after %d tasks' % completed)


def _work(inqueue, outqueue, initializer, initargs, maxtasks, wrap_exception):
    """The standard's worker, for queues of objects that somebody else made."""
    if hasattr(inqueue, '_writer'):
        inqueue._writer.close()
        outqueue._reader.close()
    if initializer is not None:
        initializer(*initargs)
    completed = 0
    while maxtasks is None or completed < maxtasks:
        try:
            task = inqueue.get()
        except (EOFError, OSError):
            break
        if task is None:
            break
        job, i, func, args, kwds = task
        try:
            result = (True, func(*args, **kwds))
        except Exception as e:
            if wrap_exception:
                e = ExceptionWithTraceback(e, e.__traceback__)
            result = (False, e)
        try:
            outqueue.put((job, i, result))
        except Exception as e:
            outqueue.put((job, i, (False, MaybeEncodingError(e, result[1]))))
        task = job = result = func = args = kwds = None
        completed += 1


#
# In the pool's process
#

class _Staff:
    """Starts the workers of a pool and ends them; knows nothing of the `Pool`, so that it can be collected."""

    def __init__(self, ctx, make, workers, initializer, initargs, maxtasks, wrap_exception):
        self.ctx = ctx
        self.make = make
        self.workers = workers
        self.numbers = {}
        self.task = (None, initializer, initargs, maxtasks, wrap_exception)
        self.lock = threading.RLock()
        self.ended = False
        self.pid = os.getpid()
        self.helper = None

    def check(self, func):
        """PicklingError for a function of a main module that workers don't get."""
        if getattr(func, '__module__', None) == '__main__' and self.ctx.get_start_method() != 'fork':
            from . import spawn
            spawn.check_found(func)

    def start(self, number, seat):
        """Starts a worker."""
        with self.lock:
            if self.ended:
                raise OSError('the pool was terminated')
            process = self.make(self.ctx, target=worker, args=(seat, *self.task))
            process.name = process.name.replace('Process', 'PoolWorker')
            process.daemon = True
            process.start()
            self.workers.append(process)
            self.numbers[id(process)] = number
            util.debug('added worker')
            if self.ended:
                # Terminated meanwhile, by a signal handler of this thread.
                process.terminate()

    def gone(self):
        """The workers that are gone since the last call: their numbers and exit codes."""
        gone = []
        with self.lock:
            for process in self.workers[:]:
                code = process.exitcode
                if code is not None:
                    util.debug('cleaning up worker %s' % process.name)
                    process.join()
                    self.workers.remove(process)
                    gone.append((self.numbers.pop(id(process), 0), code))
        return gone

    def kill(self):
        """Tells all workers to end."""
        with self.lock:
            for process in self.workers:
                if process.exitcode is None:
                    process.terminate()

    def end(self):
        """Ends all workers and waits for them; one that outlives its time is killed."""
        with self.lock:
            self.ended = True
            workers = self.workers[:]
            self.kill()
        late = None
        for process in workers:
            if process.exitcode is not None:
                continue
            if late is None:
                late = _later(_GRACE)
            process.join(max(0.0, late()))
            if process.exitcode is None:
                util.debug('killing worker %s, which does not end' % process.name)
                process.kill()
                process.join()

    def start_helper(self, handle):
        helper = threading.Thread(target=_help, args=(handle,), name='PoolHelper', daemon=True)
        helper.start()
        self.helper = helper

    def raised(self, text, pickled):
        """The exception of a task, from what its worker answered."""
        try:
            error = ForkingPickler.loads(pickled)
            if not isinstance(error, BaseException):
                raise TypeError(f'{type(error).__name__} is not an exception')
        except Exception as reason:
            last = text.strip().strip('"').strip().splitlines()
            error = MaybeEncodingError(reason, last[-1] if last else '')
        if text:
            error.__cause__ = RemoteTraceback(text)
        return error

    def failure(self, why, exitcode, text, fault):
        """The exception for a task that no worker will answer."""
        if why == 'lost':
            return _WorkerLost('the worker that ran this task %s' % _describe(exitcode), exitcode)
        if why == 'terminated':
            return _PoolTerminated('the pool was terminated before this task was done')
        text = text or 'the last one %s' % _describe(exitcode) if exitcode is not None else text
        error = _PoolBroken('the pool is broken: its workers die as they start'
                            + (f' ({text})' if text else ''))
        if fault:
            error.__cause__ = RemoteTraceback('\n"""\n%s"""' % fault)
        return error


def _later(seconds):
    """A function that says how many of so many seconds are left."""
    import time
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def _help(handle):
    """The helper thread: drives while nobody waits for a result, and calls the callbacks."""
    while (called := handle.help()) is not None:
        result, callback, value = called
        error = None
        try:
            callback(value)
        except BaseException as raised:
            error = raised
        result._called(error)
        called = result = callback = value = error = None


def _feed(feeder):
    """The thread of an iterable that may wait."""
    while feeder.step():
        pass


class Pool(_core.Pool):
    """Runs functions in worker processes."""
    _wrap_exception = True

    @staticmethod
    def Process(ctx, *args, **kwds):
        return ctx.Process(*args, **kwds)

    def __init__(self, processes=None, initializer=None, initargs=(),
                 maxtasksperchild=None, context=None):
        self._pool = []
        self._state = INIT
        if context is None:
            from . import get_context
            context = get_context()
        self._ctx = context
        if type(self)._setup_queues is not Pool._setup_queues:
            raise NotImplementedError("a pool with queues of its subclass's own isn't built yet")
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            processes = getattr(os, 'process_cpu_count', os.cpu_count)() or 1
        if processes < 1:
            raise ValueError('Number of processes must be at least 1')
        if maxtasksperchild is not None:
            if not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0:
                raise ValueError('maxtasksperchild must be a positive int or None')
        if initializer is not None and not callable(initializer):
            raise TypeError('initializer must be a callable')
        self._processes = processes
        staff = _Staff(self._ctx, self.Process, self._pool, initializer, initargs,
                       maxtasksperchild, self._wrap_exception)
        self._staff = staff
        self._handle = self._open(staff, processes)
        try:
            self._handle.populate()
        except BaseException:
            self._handle.terminate()
            staff.ended = True
            for process in self._pool:
                if process.exitcode is None:
                    process.terminate()
            for process in self._pool:
                process.join()
            raise
        self._terminate = util.Finalize(self, self._terminate_pool, args=(self._handle, staff),
                                        exitpriority=15)
        self._state = RUN

    def __del__(self, _warn=warnings.warn, RUN=RUN):
        if self._state == RUN:
            _warn(f'unclosed running multiprocessing pool {self!r}', ResourceWarning, source=self)

    def __repr__(self):
        cls = self.__class__
        return f'<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>'

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # The compiled `apply` doesn't look for an override; the standard's goes through `apply_async`.
        if 'apply_async' in cls.__dict__ and 'apply' not in cls.__dict__:
            def apply(self, func, args=(), kwds={}):
                return self.apply_async(func, args, kwds).get()
            apply.__qualname__ = f'{cls.__qualname__}.apply'
            cls.apply = apply

    def _setup_queues(self):
        pass

    def _repopulate_pool(self):
        """Reaps workers that are gone and starts what is missing."""
        self._handle.maintain()

    @property
    def _taskqueue(self):
        return _TaskQueue(self._handle)

    def map(self, func, iterable, chunksize=None):
        """The results of `func` for each item, in a list."""
        return self._map_async(func, iterable, mapstar, chunksize, _alone=False).get()

    def starmap(self, func, iterable, chunksize=None):
        """As `map`, for items that are tuples of arguments."""
        return self._map_async(func, iterable, starmapstar, chunksize, _alone=False).get()

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None):
        """As `map`, without waiting."""
        return self._map_async(func, iterable, mapstar, chunksize, callback, error_callback)

    def starmap_async(self, func, iterable, chunksize=None, callback=None, error_callback=None):
        """As `starmap`, without waiting."""
        return self._map_async(func, iterable, starmapstar, chunksize, callback, error_callback)

    def _map_async(self, func, iterable, mapper, chunksize=None, callback=None,
                   error_callback=None, _alone=True):
        self._check_running()
        if not hasattr(iterable, '__len__'):
            iterable = list(iterable)
        length = len(iterable)
        if chunksize is None:
            chunksize, extra = divmod(length, self._processes * 4)
            if extra:
                chunksize += 1
        if length == 0 or chunksize <= 0:
            chunksize = 0
        result, feeder = self._submit_map(func, iterable, chunksize, mapper is starmapstar,
                                          type(iterable) in _PLAIN, _alone, callback, error_callback)
        self._start_feeder(feeder)
        return result

    def imap(self, func, iterable, chunksize=1):
        """An iterator over the results of `func` for each item, in order."""
        return self._imap(func, iterable, chunksize, True)

    def imap_unordered(self, func, iterable, chunksize=1):
        """As `imap`, in the order in which results come."""
        return self._imap(func, iterable, chunksize, False)

    def _imap(self, func, iterable, chunksize, ordered):
        self._check_running()
        if chunksize < 1:
            raise ValueError('Chunksize must be 1+, not {0:n}'.format(chunksize) if ordered
                             else 'Chunksize must be 1+, not {0!r}'.format(chunksize))
        size = 0 if chunksize == 1 else chunksize
        result, feeder = self._submit_imap(func, iter(iterable), size, ordered,
                                           type(iterable) in _PLAIN)
        self._start_feeder(feeder)
        if size == 0:
            return result
        return (item for chunk in result for item in chunk)

    def _start_feeder(self, feeder):
        if feeder is not None:
            threading.Thread(target=_feed, args=(feeder,), name='PoolFeeder', daemon=True).start()

    @staticmethod
    def _get_tasks(func, it, size):
        it = iter(it)
        while x := tuple(itertools.islice(it, size)):
            yield (func, x)

    def __reduce__(self):
        raise NotImplementedError(
            'pool objects cannot be passed between processes or pickled')

    def close(self):
        """No more jobs: the workers leave when all is done."""
        util.debug('closing pool')
        if self._state == RUN:
            self._state = CLOSE
            self._handle.close()

    def terminate(self):
        """Ends the workers now; what is unanswered fails."""
        util.debug('terminating pool')
        self._state = TERMINATE
        self._terminate()

    def join(self):
        """Waits for the workers to end; `close()` or `terminate()` comes first."""
        util.debug('joining pool')
        if self._state == RUN:
            raise ValueError('Pool is still running')
        elif self._state not in (CLOSE, TERMINATE):
            raise ValueError('In unknown state')
        self._handle.finish()
        for process in self._pool[:]:
            process.join()
        helper = self._staff.helper
        if helper is not None and helper is not threading.current_thread():
            helper.join()

    @staticmethod
    def _terminate_pool(handle, staff):
        util.debug('finalizing pool')
        if os.getpid() == staff.pid:
            staff.ended = True
            if util.is_exiting():
                handle.freeze()
            else:
                handle.terminate()
            staff.end()

    def __enter__(self):
        self._check_running()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()


class _TaskQueue:
    """What there is to see of the tasks that no worker has taken."""

    def __init__(self, handle):
        self._handle = handle

    def qsize(self):
        return self._handle.waiting()

    def empty(self):
        return self.qsize() == 0


class _Done:
    """A result's event, for those who look at it."""

    def __init__(self, result):
        self._result = result

    def is_set(self):
        return self._result.ready()

    def wait(self, timeout=None):
        self._result.wait(timeout)
        return self._result.ready()


ApplyResult = _core.ApplyResult
ApplyResult.__class_getitem__ = classmethod(types.GenericAlias)
ApplyResult._event = property(_Done)
AsyncResult = ApplyResult       # create alias -- see CPython's bpo-17805
MapResult = _core.MapResult
IMapIterator = _core.IMapIterator
IMapUnorderedIterator = _core.IMapUnorderedIterator


class ThreadPool(Pool):
    """Runs functions in threads of this process."""

    def __init__(self, processes=None, initializer=None, initargs=()):
        raise NotImplementedError("ThreadPool isn't built yet")
