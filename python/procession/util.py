"""Logging, finalizers and the exit of a process. See the standard library's `multiprocessing.util`."""

__all__ = [
    'sub_debug', 'debug', 'info', 'sub_warning', 'warn', 'get_logger', 'log_to_stderr',
    'get_temp_dir', 'register_after_fork', 'is_exiting', 'Finalize', 'ForkAwareThreadLock',
    'ForkAwareLocal', 'close_all_fds_except', 'SUBDEBUG', 'SUBWARNING',
]

import atexit
import itertools
import os
import sys
import threading
import weakref

from . import _core, process


def __getattr__(name):
    if name == '_args_from_interpreter_flags':
        # Children don't need it, and what it lies in takes long to import.
        from subprocess import _args_from_interpreter_flags
        return _args_from_interpreter_flags
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


#
# Logging
#

NOTSET = 0
SUBDEBUG = 5
DEBUG = 10
INFO = 20
SUBWARNING = 25
WARNING = 30

LOGGER_NAME = 'multiprocessing'
DEFAULT_LOGGING_FORMAT = '[%(levelname)s/%(processName)s] %(message)s'

_logger = None
_log_to_stderr = False


def _logging_at(level):
    def log(msg, *args):
        if _logger:
            # As the caller's line, not this one.
            _logger.log(level, msg, *args, stacklevel=2)
    return log


sub_debug, debug, info, sub_warning, warn = map(_logging_at, (SUBDEBUG, DEBUG, INFO, SUBWARNING, WARNING))


def get_logger():
    """The package's logger, which has the standard's name."""
    global _logger
    import logging
    if not _logger:
        _logger = logging.getLogger(LOGGER_NAME)
        _logger.propagate = 0
        # Our end comes before logging's own.
        atexit.unregister(_exit_function)
        atexit.register(_exit_function)
    return _logger


def log_to_stderr(level=None):
    """Adds a handler that prints to stderr."""
    global _log_to_stderr
    import logging
    logger = get_logger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(DEFAULT_LOGGING_FORMAT))
    logger.addHandler(handler)
    if level:
        logger.setLevel(level)
    _log_to_stderr = True
    return _logger


abstract_sockets_supported = sys.platform == 'linux'


def is_abstract_socket_namespace(address):
    """Whether a socket's address is a name without a file."""
    if not address:
        return False
    if isinstance(address, bytes):
        return address[0] == 0
    if isinstance(address, str):
        return address[0] == '\0'
    raise TypeError(f'address type of {address!r} unrecognized')


def _remove_temp_dir(rmtree, tempdir):
    rmtree(tempdir)
    current = process.current_process()
    if current is not None:
        current._config['tempdir'] = None


def get_temp_dir():
    """A folder that goes when this process ends."""
    tempdir = process.current_process()._config.get('tempdir')
    if tempdir is None:
        import shutil
        import tempfile
        tempdir = tempfile.mkdtemp(prefix='pymp-')
        info('created temp directory %s', tempdir)
        # rmtree is kept: at the end of the interpreter it can't be looked up any more.
        Finalize(None, _remove_temp_dir, args=(shutil.rmtree, tempdir), exitpriority=-100)
        process.current_process()._config['tempdir'] = tempdir
    return tempdir


#
# After a fork
#

_afterfork_registry = weakref.WeakValueDictionary()
_afterforkers = _afterfork_registry.data
_afterfork_counter = itertools.count()


def _run_after_forkers():
    for (_, _, func), obj in sorted(_afterfork_registry.items(), key=lambda item: item[0][:2]):
        try:
            func(obj)
        except Exception as e:
            info('after forker raised exception %s', e)


def register_after_fork(obj, func):
    """Has `func(obj)` called in each forked child, as long as `obj` lives."""
    _afterfork_registry[(next(_afterfork_counter), id(obj), func)] = obj


#
# Finalizers
#

_finalizer_registry = {}
_finalizer_counter = itertools.count()


class Finalize:
    """Calls something once: when it is called, when its object goes, or when the process exits."""

    def __init__(self, obj, callback, args=(), kwargs=None, exitpriority=None):
        if exitpriority is not None and not isinstance(exitpriority, int):
            raise TypeError('Exitpriority ({0!r}) must be None or int, not {1!s}'.format(
                exitpriority, type(exitpriority)))
        if obj is not None:
            self._weakref = weakref.ref(obj, self)
        elif exitpriority is None:
            raise ValueError('Without object, exitpriority cannot be None')
        self._callback = callback
        self._args = args
        self._kwargs = kwargs or {}
        self._key = (exitpriority, next(_finalizer_counter))
        self._pid = os.getpid()
        _finalizer_registry[self._key] = self

    # What it needs is bound here: at the end of the interpreter the module's names are gone.
    def __call__(self, wr=None, _finalizer_registry=_finalizer_registry, sub_debug=sub_debug,
                 getpid=os.getpid):
        """Runs the callback unless it has been run or cancelled."""
        try:
            del _finalizer_registry[self._key]
        except KeyError:
            sub_debug('finalizer no longer registered')
            return None
        res = None
        if self._pid != getpid():
            sub_debug('finalizer ignored because different process')
        else:
            sub_debug('finalizer calling %s with args %s and kwargs %s',
                      self._callback, self._args, self._kwargs)
            res = self._callback(*self._args, **self._kwargs)
        self._forget()
        return res

    def _forget(self):
        self._weakref = self._callback = self._args = self._kwargs = self._key = None

    def cancel(self):
        """Has the callback never called."""
        if _finalizer_registry.pop(self._key, None) is not None:
            self._forget()

    def still_active(self):
        """Whether the callback waits to be called."""
        return self._key in _finalizer_registry

    def __repr__(self):
        try:
            obj = self._weakref()
        except (AttributeError, TypeError):
            obj = None
        if obj is None:
            return '<%s object, dead>' % self.__class__.__name__
        x = '<%s object, callback=%s' % (
            self.__class__.__name__, getattr(self._callback, '__name__', self._callback))
        if self._args:
            x += ', args=' + str(self._args)
        if self._kwargs:
            x += ', kwargs=' + str(self._kwargs)
        if self._key[0] is not None:
            x += ', exitpriority=' + str(self._key[0])
        return x + '>'


def _run_finalizers(minpriority=None):
    """Runs the finalizers that have an exit priority of at least that, the highest first, then the newest."""
    if not _finalizer_registry:
        # There are none, or the end of the interpreter has taken this module's names.
        return

    def wanted(key):
        return key[0] is not None and (minpriority is None or key[0] >= minpriority)

    for key in sorted(filter(wanted, list(_finalizer_registry)), reverse=True):
        finalizer = _finalizer_registry.get(key)
        if finalizer is not None:
            sub_debug('calling %s', finalizer)
            try:
                finalizer()
            except Exception:
                import traceback
                traceback.print_exc()
    if minpriority is None:
        _finalizer_registry.clear()


#
# The end
#

_exiting = False


def is_exiting():
    """Whether this process is on its way out."""
    return _exiting or _exiting is None


def _exit_function(info=info, debug=debug, _run_finalizers=_run_finalizers,
                   active_children=process.active_children,
                   current_process=process.current_process):
    """Ends this process' part in its tree: finalizers, daemons, children, the remaining finalizers."""
    global _exiting
    if _exiting:
        return
    _exiting = True
    if not (_logger or _finalizer_registry or process and process._children):
        return
    info('process shutting down')
    debug('running all "atexit" finalizers with priority >= 0')
    _run_finalizers(0)
    if current_process() is not None:
        for child in active_children():
            if child.daemon:
                info('calling terminate() for daemon %s', child.name)
                child._popen.terminate()
        for child in active_children():
            info('calling join() for process %s', child.name)
            child.join()
    debug('running the remaining "atexit" finalizers')
    _run_finalizers()


def _register_exit(*afterwards):
    # Registered first, so called last: what this process still holds after it is given back as a normal exit's.
    for function in (*afterwards, _core.leave, _exit_function):
        atexit.unregister(function)
        atexit.register(function)


_register_exit()

#: From 3.13 on a forked child runs what it has registered with `atexit`; before, our own part alone.
_CHILDREN_RUN_ATEXIT = sys.version_info >= (3, 13)


def _forget_exit():
    """Forgets what a forked child's parent has registered with `atexit`."""
    if _CHILDREN_RUN_ATEXIT:
        atexit._clear()
        _register_exit()


def _exit_forked(code):
    """Ends a forked child, with what it has registered."""
    try:
        if _CHILDREN_RUN_ATEXIT:
            atexit._run_exitfuncs()
            _flush_std_streams()
        else:
            _core.leave()
    finally:
        os._exit(code & 0xff)


#
# What knows of forks
#

class ForkAwareThreadLock:
    """A lock of threads that is free in a forked child."""

    def __init__(self):
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        register_after_fork(self, ForkAwareThreadLock._at_fork_reinit)

    def _at_fork_reinit(self):
        self._lock._at_fork_reinit()

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *args):
        return self._lock.__exit__(*args)


class ForkAwareLocal(threading.local):
    """A thread's own names, which a forked child hasn't."""

    def __init__(self):
        register_after_fork(self, lambda obj: obj.__dict__.clear())

    def __reduce__(self):
        return type(self), ()


#
# Descriptors
#

try:
    MAXFD = os.sysconf('SC_OPEN_MAX')
except Exception:
    MAXFD = 256


def close_all_fds_except(fds):
    """Closes all descriptors but these."""
    fds = sorted([*fds, -1, MAXFD])
    assert fds[-1] == MAXFD, 'fd too large'
    for before, after in itertools.pairwise(fds):
        # The interpreter takes an empty range from 0 for all there is.
        if before + 1 < after:
            os.closerange(before + 1, after)


def _above_streams(fd):
    """The same descriptor under a number that no standard stream has: one of those may be closed."""
    if fd > 2:
        return fd
    import fcntl
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def close_fds(*fds):
    """Closes these descriptors."""
    for fd in fds:
        os.close(fd)


#: What children have for standard input: made before they are forked, since making it writes to a hundred pages.
_null_input = None
_null_fd = -1


def _open_null_input():
    global _null_input, _null_fd
    if sys.stdin is None:
        return
    # The program may have closed what it doesn't know of, and its number may be another file's.
    kept = _null_input if _core.is_null_device(_null_fd) else None
    if kept is not None and not kept.closed:
        return
    try:
        if kept is None:
            _null_fd = _above_streams(os.open(os.devnull, os.O_RDONLY))
        _null_input = open(_null_fd, encoding='utf-8', closefd=False)
    except (OSError, ValueError):
        # Each child tries for itself.
        _null_input = None


def _close_stdin():
    if sys.stdin is None or sys.stdin is _null_input and not _null_input.closed:
        return
    try:
        sys.stdin.close()
    except (OSError, ValueError):
        pass
    if _null_input is None:
        _open_null_input()
    if _null_input is not None:
        sys.stdin = _null_input


def _flush_std_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            pass


def _cleanup_tests():
    """What CPython's own suite calls at its end."""
    from test import support

    from . import forkserver, resource_tracker
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()
    process._cleanup()
    _run_finalizers()
    support.gc_collect()
    support.reap_children()


def spawnv_passfds(path, args, passfds):
    """Starts a program that inherits these descriptors and no other; returns its process id.

    An executable that can't be run is an OSError here, where the standard's child exits with 255.
    """
    import subprocess
    child = subprocess.Popen([os.fsdecode(arg) for arg in args], executable=path, pass_fds=tuple(passfds))
    # The child is ours to wait for: the object says nothing when it goes.
    child.returncode = 0
    return child.pid
