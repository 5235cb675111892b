"""Processes. See the standard library's `multiprocessing.process`."""

__all__ = ['BaseProcess', 'current_process', 'active_children', 'parent_process']

import itertools
import os
import sys
import threading
from _weakrefset import WeakSet

from . import _standard

try:
    ORIGINAL_DIR = os.path.abspath(os.getcwd())
except OSError:
    ORIGINAL_DIR = None


def current_process():
    """The object of the current process."""
    return _current_process


def active_children():
    """The current process' children that are alive; joins those that have ended."""
    _cleanup()
    return list(_children)


def parent_process():
    """The object of the process that started this one, or None in the first."""
    global _parent_process
    if _parent_process is None and _parent is not None:
        _parent_process = _ParentProcess(*_parent)
    return _parent_process


def _cleanup():
    # By one system call: each start comes here, and there may be many.
    import select
    poll = select.poll()
    running = {popen.sentinel: (child, popen) for child in list(_children) if (popen := child._popen)}
    for sentinel in running:
        poll.register(sentinel, select.POLLIN)
    for sentinel, _ in poll.poll(0):
        child, popen = running[sentinel]
        if popen.poll() is not None:
            _children.discard(child)


class BaseProcess:
    """A function or a `run` method that runs in a process of its own, as `threading.Thread` does in a thread."""

    def _Popen(self):
        raise NotImplementedError

    def __init__(self, group=None, target=None, name=None, args=(), kwargs={}, *, daemon=None):
        assert group is None, 'group argument must be None for now'
        self._identity = _current_process._identity + (next(_process_counter),)
        self._config = _current_process._config.copy()
        self._parent_pid = os.getpid()
        self._parent_name = _current_process._name
        self._popen = None
        self._closed = False
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs or ())
        self._name = name or f"{type(self).__name__}-{':'.join(map(str, self._identity))}"
        if daemon is not None:
            self.daemon = daemon
        _dangling.add(self)

    def _check_closed(self):
        if self._closed:
            raise ValueError('process object is closed')

    def _check_parent(self, what):
        # Not by `assert`: with -O another process would be told nothing, or hit what it can't wait for.
        self._check_closed()
        if self._parent_pid != os.getpid():
            raise AssertionError(f'can only {what}')

    def run(self):
        """What the process does: calls the target, unless a subclass overrides it."""
        if self._target:
            self._target(*self._args, **self._kwargs)

    def start(self):
        """Starts the process: once."""
        self._check_parent('start a process object created by current process')
        assert self._popen is None, 'cannot start a process twice'
        assert not _current_process._config.get('daemon'), \
            'daemonic processes are not allowed to have children'
        if _children:
            _cleanup()
        self._popen = self._Popen(self)
        self._sentinel = self._popen.sentinel
        # The target may refer to this object: a cycle that nobody needs any more.
        del self._target, self._args, self._kwargs
        _children.add(self)

    def terminate(self):
        """Sends SIGTERM."""
        self._check_parent('terminate a child process')
        self._popen.terminate()

    def kill(self):
        """Sends SIGKILL."""
        self._check_parent('kill a child process')
        self._popen.kill()

    def interrupt(self):
        """Sends SIGINT, as Ctrl-C does."""
        self._check_parent('interrupt a child process')
        self._popen.interrupt()

    def join(self, timeout=None):
        """Waits until the process has ended, or for so many seconds."""
        self._check_parent('join a child process')
        assert self._popen is not None, 'can only join a started process'
        if self._popen.wait(timeout) is not None:
            _children.discard(self)

    def is_alive(self):
        """Whether the process has been started and hasn't ended."""
        self._check_closed()
        if self is _current_process:
            return True
        self._check_parent('test a child process')
        if self._popen is None:
            return False
        if self._popen.poll() is None:
            return True
        _children.discard(self)
        return False

    def close(self):
        """Gives back what the object holds; ValueError while the process runs."""
        if self._popen is not None:
            if self._popen.poll() is None:
                raise ValueError('Cannot close a process while it is still running. '
                                 'You should first call join() or terminate().')
            self._popen.close()
            self._popen = None
            del self._sentinel
            _children.discard(self)
        self._closed = True

    @property
    def name(self):
        """The process' name, for people only."""
        return self._name

    @name.setter
    def name(self, name):
        assert isinstance(name, str), 'name must be a string'
        self._name = name

    @property
    def daemon(self):
        """Whether the process ends with its parent, however that ends."""
        return self._config.get('daemon', False)

    @daemon.setter
    def daemon(self, daemonic):
        assert self._popen is None, 'process has already started'
        self._config['daemon'] = daemonic

    @property
    def authkey(self):
        """The key that connections between processes of this tree authenticate with."""
        return self._config['authkey']

    @authkey.setter
    def authkey(self, authkey):
        self._config['authkey'] = AuthenticationString(authkey)

    @property
    def exitcode(self):
        """None before the end; then the exit status, or minus the signal that ended it."""
        self._check_closed()
        if self._popen is None:
            return None
        self._check_parent('ask for the exit code of a child process')
        return self._popen.poll()

    @property
    def ident(self):
        """The process id, or None before the start."""
        self._check_closed()
        if self is _current_process:
            return os.getpid()
        return self._popen and self._popen.pid

    pid = ident

    @property
    def sentinel(self):
        """A descriptor that is ready for reading once the process has ended: a pidfd."""
        self._check_closed()
        try:
            return self._sentinel
        except AttributeError:
            raise ValueError('process not started') from None

    def __repr__(self):
        exitcode = None
        if self is _current_process:
            status = 'started'
        elif self._closed:
            status = 'closed'
        elif self._parent_pid != os.getpid():
            status = 'unknown'
        elif self._popen is None:
            status = 'initial'
        else:
            exitcode = self._popen.poll()
            status = 'started' if exitcode is None else 'stopped'
        info = [type(self).__name__, 'name=%r' % self._name]
        if self._popen is not None:
            info.append('pid=%s' % self._popen.pid)
        info.append('parent=%s' % self._parent_pid)
        info.append(status)
        if exitcode is not None:
            info.append('exitcode=%s' % _exitcode_to_name(exitcode))
        if self.daemon:
            info.append('daemon')
        return '<%s>' % ' '.join(info)

    def _bootstrap(self, parent_sentinel=None):
        """The child's life, from its first to its last line of Python; returns the exit status."""
        # A call, even one that has nothing to do, writes to some pages of its own, which are copied in a forked child: what
        # is mostly nothing is looked at here.
        try:
            if self._start_method is not None:
                context._default_context._actual_context = context._concrete_contexts[self._start_method]
            global _current_process, _parent_process, _parent, _process_counter, _children, _inherited
            _process_counter = itertools.count(1)
            # What the parent had is kept: to let go of it would write to pages of each of them.
            _inherited = _children, _current_process, _parent, _parent_process
            _children = set()
            util._close_stdin()
            _current_process = self
            _parent, _parent_process = (self._parent_name, self._parent_pid, parent_sentinel), None
            threading._main_thread._native_id = threading.get_native_id()
            if 'multiprocessing.process' in sys.modules:
                _standard.be()
            if util._finalizer_registry or util._afterforkers:
                self._after_fork()
            if util._logger:
                util.info('child process calling self.run()')
            try:
                self.run()
                exitcode = 0
            finally:
                if not util._CHILDREN_RUN_ATEXIT:
                    util._exit_function()
        except SystemExit as e:
            exitcode = 0 if e.code is None else _status(e.code)
        except:  # noqa: E722: whatever it is, it ends here
            exitcode = 1
            import traceback
            sys.stderr.write('Process %s:\n' % self.name)
            traceback.print_exc()
        finally:
            # Before 3.13 these are the threads that it would wait for, and what it would call.
            if getattr(threading, '_shutdown_locks', True) or threading._threading_atexits:
                threading._shutdown()
            if util._logger:
                util.info('process exiting with exitcode %d' % exitcode)
            util._flush_std_streams()
        return exitcode

    @staticmethod
    def _after_fork():
        util._finalizer_registry.clear()
        util._run_after_forkers()


def _exitcode_to_name(code):
    # A child would take longer to import it than most of what it needs.
    import signal
    try:
        return f'-{signal.Signals(-code).name}'
    except ValueError:
        return code


def _status(code):
    """The exit status that `sys.exit(code)` means."""
    if code is None:
        return 0
    if isinstance(code, int):
        # One that no C long holds counts as -1, as with the interpreter's own exit.
        return code if -1 << 63 <= code < 1 << 63 else -1
    sys.stderr.write(str(code) + '\n')
    return 1


class AuthenticationString(bytes):
    """A key that is only pickled for a child of ours."""

    def __reduce__(self):
        from .context import get_spawning_popen
        if get_spawning_popen() is None:
            raise TypeError(
                'Pickling an AuthenticationString object is disallowed for security reasons')
        return AuthenticationString, (bytes(self),)


class _ParentProcess(BaseProcess):
    """The process that started this one."""

    def __init__(self, name, pid, sentinel):
        self._identity = ()
        self._name = name
        self._pid = pid
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._sentinel = sentinel
        self._config = {}

    def is_alive(self):
        from .connection import wait
        return not wait([self._sentinel], timeout=0)

    @property
    def ident(self):
        return self._pid

    def join(self, timeout=None):
        """Waits until the parent has ended."""
        from .connection import wait
        wait([self._sentinel], timeout=timeout)

    pid = ident


class _MainProcess(BaseProcess):
    """The process that nobody of ours started."""

    def __init__(self):
        self._identity = ()
        self._name = 'MainProcess'
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._config = {'authkey': AuthenticationString(os.urandom(32)), 'semprefix': '/mp'}

    def close(self):
        pass


#: The parent, and its object, which is made when somebody asks for it.
_parent = _parent_process = None
_current_process = _MainProcess()
_process_counter = itertools.count(1)
_children = set()
_inherited = None
_dangling = WeakSet()

# Here, since they need what is above; and not where a child would come to them, for which an import is a dozen pages to copy.
from . import context, util  # noqa: E402
