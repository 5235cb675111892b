"""The process that removes what has a name and was left behind. See the standard library's `multiprocessing.resource_tracker`.

Only `shared_memory` has names here, so a program that doesn't use it has no tracker: it is started by the first who
registers a name or, in a program that has loaded this module, with the first spawned child, so that both have the same.
"""

__all__ = ['ensure_running', 'register', 'unregister']

import os
import signal
import sys
import threading
import warnings

import _posixshmem

from . import spawn, util

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def cleanup_noop(name):
    """Not to be called: the type of what is no resource."""
    raise RuntimeError('noop should never be registered or cleaned up')


#: How a resource of each type is removed by its name. Programs may add their own.
_CLEANUP_FUNCS = {'noop': cleanup_noop, 'shared_memory': _posixshmem.shm_unlink}
if sys.version_info >= (3, 13):
    # CPython's own tests register it.
    _CLEANUP_FUNCS['dummy'] = lambda name: None


class ReentrantCallError(RuntimeError):
    """A finalizer calls the tracker while its thread is inside it."""


class ResourceTracker:
    """The writing end of a pipe, from which the tracker's process reads until nobody has it any more."""

    def __init__(self):
        self._lock = threading.RLock()
        self._fd = self._pid = self._exitcode = None

    def _enter(self):
        if self._lock._is_owned():
            raise ReentrantCallError('Reentrant call into the multiprocessing resource tracker')
        return self._lock

    def _stop(self):
        with self._enter():
            if self._fd is None:
                return
            os.close(self._fd)
            _, status = os.waitpid(self._pid, 0)
            self._exitcode = os.waitstatus_to_exitcode(status)
            self._fd = self._pid = None

    def getfd(self):
        """The descriptor that children are to have."""
        self.ensure_running()
        return self._fd

    def ensure_running(self):
        """Starts the tracker's process unless it runs."""
        with self._enter():
            if self._fd is not None:
                if self._check_alive():
                    return
                self._forget()
                warnings.warn('resource_tracker: process died unexpectedly, relaunching.  Some resources might leak.')
            self._launch()

    def _forget(self):
        os.close(self._fd)
        try:
            # It may be somebody else's child.
            if self._pid is not None:
                os.waitpid(self._pid, 0)
        except ChildProcessError:
            pass
        self._fd = self._pid = self._exitcode = None

    def _launch(self):
        reader, writer = os.pipe()
        try:
            command = spawn.command('resource_tracker', 'main', fd=reader)
            # A signal that comes before the child ignores it must not end it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
            try:
                self._pid = util.spawnv_passfds(command[0], command, [reader, *_stderr()])
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._fd = writer
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)

    def _check_alive(self):
        try:
            return os.write(self._fd, b'PROBE:0:noop\n') > 0
        except OSError:
            return False

    def register(self, name, rtype):
        """Has the resource removed at the end, unless it is unregistered before."""
        self._send('REGISTER', name, rtype)

    def unregister(self, name, rtype):
        """Takes it back: the resource is gone, or somebody else's affair."""
        self._send('UNREGISTER', name, rtype)

    def _send(self, cmd, name, rtype):
        try:
            self.ensure_running()
        except ReentrantCallError:
            warnings.warn('ResourceTracker called reentrantly for resource cleanup, which is unsupported. '
                          f'The {rtype} object {name!r} might leak.')
        # Any name goes: what would end the line, or isn't ASCII, is escaped. A longer write might be torn.
        message = b'%s:%s:%s\n' % (cmd.encode(), name.encode('unicode_escape'), rtype.encode())
        if len(message) > 512:
            raise ValueError('msg too long')
        os.write(self._fd, message)


def _stderr():
    try:
        return [sys.stderr.fileno()]
    except Exception:
        return []


_resource_tracker = ResourceTracker()
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd
# Another thread may be inside when this one forks.
os.register_at_fork(after_in_child=_resource_tracker._lock._at_fork_reinit)


def main(fd):
    """The tracker's process: reads what is registered until nobody is left who could, then removes what is left."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    for stream in (sys.stdin, sys.stdout):
        try:
            stream.close()
        except Exception:
            pass
    cache = {rtype: set() for rtype in _CLEANUP_FUNCS}
    status = 0
    with open(fd, 'rb') as lines:
        for line in lines:
            try:
                _note(cache, line)
            except Exception:
                status = 3
                sys.excepthook(*sys.exc_info())
    sys.exit(max([_remove(rtype, names) for rtype, names in cache.items() if names], default=status))


def _note(cache, line):
    cmd, _, rest = line.strip().decode('ascii').partition(':')
    name, _, rtype = rest.rpartition(':')
    name = name.encode().decode('unicode_escape')
    if rtype not in cache:
        raise ValueError(f'Cannot register {name} for automatic cleanup: unknown resource type {rtype}')
    if cmd == 'REGISTER':
        cache[rtype].add(name)
    elif cmd == 'UNREGISTER':
        cache[rtype].remove(name)
    elif cmd != 'PROBE':
        raise RuntimeError('unrecognized command %r' % cmd)


def _remove(rtype, names):
    if rtype != 'dummy':
        listed = f': {names}' if sys.version_info >= (3, 13) else ''
        warnings.warn(f'resource_tracker: There appear to be {len(names)} leaked {rtype} objects '
                      f'to clean up at shutdown{listed}')
    status = 1
    for name in names:
        try:
            _CLEANUP_FUNCS[rtype](name)
        except Exception as e:
            status = 2
            warnings.warn('resource_tracker: %r: %s' % (name, e))
    return status
