"""The fork server, which has everything loaded and forks children for others. See the standard library's `multiprocessing.forkserver`.

Its processes reach it by a socket that has no name and that only they inherit; `core/src/process/server.rs` has both ends.
"""

__all__ = ['ensure_running', 'get_inherited_fds', 'connect_to_new_process', 'set_forkserver_preload']

import _signal
import atexit
import contextlib
import gc
import os
import pickle
import signal
import struct
import sys
import threading
import warnings

from . import _alias, _core, popen_spawn_posix, process, spawn, util

MAXFDS_TO_SEND = 256
SIGNED_STRUCT = struct.Struct('q')
_ON_ERROR = ('ignore', 'warn', 'fail')
#: What children of the server's need to know of the main module, and what it needs itself before it loads any.
_MAIN = ('init_main_from_name', 'init_main_from_path')
_PATHS = ('sys_path', 'sys_argv', 'orig_dir')


class ForkServer:
    """This process' way to the server, which it starts when it needs one and its parent had none."""

    def __init__(self):
        self._lock = threading.Lock()
        self._preload_modules = ['__main__']
        self._on_error = 'ignore'
        self._inherited_fds = None
        self._forkserver_pid = self._way = self._slot = self._starter = None
        # It has answered: when it is gone then, another one may do better.
        self._has_served = False

    def set_forkserver_preload(self, modules_names, *, on_error='ignore'):
        """Names the modules that the server is to import before it forks, and what it does about those that it can't."""
        if not all(type(name) is str for name in modules_names):
            raise TypeError('module_names must be a list of strings')
        if on_error not in _ON_ERROR:
            raise ValueError(f'on_error must be one of {_ON_ERROR}, not {on_error!r}')
        self._preload_modules = modules_names
        self._on_error = on_error

    def get_inherited_fds(self):
        """The descriptors that came with the request for this process; None if the server hasn't forked it."""
        return self._inherited_fds

    def connect_to_new_process(self, fds):
        """Has the server fork a child: a descriptor from which `read_signed` reads its process id and, at the end, its exit
        code, and one to write its preparation and process object to, pickled.
        """
        slot = _core.child_slot()
        (reader, data), (status, writer) = os.pipe(), os.pipe()
        try:
            child = self._start(slot, False, [reader, *fds])
        except BaseException:
            util.close_fds(data, status, writer)
            slot.release()
            raise
        finally:
            os.close(reader)

        def report():
            with contextlib.suppress(BrokenPipeError), open(writer, 'wb', buffering=0):
                write_signed(writer, child.pid)
                write_signed(writer, child.wait())
            slot.release()
        threading.Thread(target=report, daemon=True).start()
        return status, data

    def _start(self, slot, daemon, fds, payload=None):
        """Has a child forked into a place; an EOFError says that the server is gone."""
        self.ensure_running()
        tracker = popen_spawn_posix._tracker_descriptor()
        tracked = [] if tracker is None else [tracker]
        # The descriptor that the child reads from comes first.
        at = payload is None
        fds = [*fds[:at], *tracked, *fds[at:]]
        child = self._way.start(slot, (daemon, bool(tracked)), fds, payload)
        self._has_served = True
        return child

    def ensure_running(self):
        """Starts the server unless this process has the way to one that lives."""
        with self._lock:
            if self._way is not None:
                if self._way.is_alive():
                    return
                self._forget()
            self._launch()

    def _may_do_better(self):
        """Whether who asked in vain may ask again: not of a server that has died before it served anybody."""
        with self._lock:
            # None: another thread is about to start one.
            return self._has_served or self._way is None or self._way.is_alive()

    def _stop(self):
        with self._lock:
            if self._way is not None:
                self._forget()

    def _forget(self):
        self._way.close()
        if self._starter == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._forkserver_pid, 0)
            self._slot.release()
        self._forkserver_pid = self._way = self._slot = self._starter = None
        self._has_served = False

    def _launch(self):
        data = spawn.get_preparation_data('ignore')
        wanted = _PATHS + _MAIN * ('__main__' in self._preload_modules)
        data = {key: data[key] for key in wanted if key in data}
        slot, (way, end) = _core.child_slot(), _core.fork_server()
        try:
            # In memory, not a pipe: nobody waits for who reads it.
            with open(util._above_streams(os.memfd_create('job')), 'w+b') as job:
                pickle.dump((list(self._preload_modules), self._on_error, data), job)
                job.seek(0)
                pid = self._run(end, job.fileno(), slot)
        except BaseException:
            way.close()
            slot.release()
            raise
        finally:
            os.close(end)
        self._way, self._slot, self._forkserver_pid, self._starter = way, slot, pid, os.getpid()

    @staticmethod
    def _run(end, job, slot):
        arena, tracker = _core.arena_descriptor(), popen_spawn_posix._tracker_descriptor()
        kwds = dict(requests=end, job=job, token=slot.token(arena), alias=int(_alias.installed), tracker_fd=tracker)
        command = spawn.frozen_command(**kwds) or spawn.command('forkserver', 'main', **kwds)
        # A signal that comes before the server is ready for it waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return util.spawnv_passfds(command[0], command, [end, job, arena] + [tracker] * (tracker is not None))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
# Another thread may be inside when this one forks.
os.register_at_fork(after_in_child=lambda: _forkserver._lock._at_fork_reinit())


#
# In the server
#

def main(requests, job, token, alias=0, tracker_fd=None):
    """The server's whole life, and the beginning of each child's."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        # A standard stream that is closed leaves its number to what comes by the socket.
        while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(fd)
        _core.attach(token)
        if alias:
            _alias.install()
        spawn.inherit_tracker(tracker_fd)
        with open(job, 'rb') as file:
            modules, on_error, data = pickle.load(file)
        _preload(modules, on_error, data)
        util._close_stdin()
    except KeyboardInterrupt:
        # Whoever goes on starts another.
        os._exit(1)
    # Not by `signal`, which makes members of enumerations of all: as much as a child needs for the rest of its beginning.
    on_child, on_interrupt = (_signal.signal(number, handler) or _signal.SIG_DFL for number, handler in (
        (_signal.SIGCHLD, _signal.SIG_DFL), (_signal.SIGINT, _signal.SIG_IGN)))
    # Pages that the collector doesn't write to stay shared.
    gc.collect()
    gc.freeze()

    def begin():
        _signal.signal(_signal.SIGCHLD, on_child)
        if on_interrupt != _signal.SIG_IGN:
            # A child that nobody has asked for has nobody to tell: it ends.
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        util._forget_exit()
    child = _core.serve(requests, begin)
    if child is not None:
        _live(child, on_interrupt)
    # Threads that a module has started don't keep it.
    atexit._run_exitfuncs()
    util._flush_std_streams()
    os._exit(0)


def _preload(modules, on_error, data):
    main = {key: data.pop(key) for key in _MAIN if key in data}
    spawn.prepare(data)
    if main:
        process.current_process()._inheriting = True
        try:
            spawn.prepare(main)
        except (Exception, SystemExit) as e:
            _not_loaded(on_error, '__main__', e)
        finally:
            del process.current_process()._inheriting
    for name in modules:
        try:
            __import__(name)
        except ImportError as e:
            _not_loaded(on_error, name, e)
    # What was printed so far is the server's, not once more each child's.
    util._flush_std_streams()


def _not_loaded(on_error, name, e):
    if on_error == 'fail':
        raise e
    if on_error == 'warn':
        warnings.warn(f'the fork server cannot preload {name!r}: {type(e).__name__}: {e}', ImportWarning, stacklevel=2)


def _live(child, on_interrupt):
    """A child's whole life, from when somebody has asked for it."""
    code = 1
    try:
        _signal.signal(_signal.SIGINT, on_interrupt)
        way, requester, (daemon, tracked, is_piped), payload, fds = child
        pipe = fds.pop(0) if is_piped else None
        if tracked:
            spawn.inherit_tracker(fds.pop(0))
        _forkserver._way, _forkserver._inherited_fds, _forkserver._has_served = way, fds, True
        _forkserver._forkserver_pid = os.getppid()
        if daemon:
            # Its parent in all but the kernel's tables; the server may die as it likes.
            _core.die_with(requester)
        code = spawn._begin(spawn._read(pipe) if is_piped else payload, requester)
    except Exception:
        sys.excepthook(*sys.exc_info())
        util._flush_std_streams()
    finally:
        util._exit_forked(code)


#
# Numbers through pipes
#

def read_signed(fd):
    """Reads a number from a pipe."""
    data = b''
    while len(data) < SIGNED_STRUCT.size:
        more = os.read(fd, SIGNED_STRUCT.size - len(data))
        if not more:
            raise EOFError('unexpected EOF')
        data += more
    return SIGNED_STRUCT.unpack(data)[0]


def write_signed(fd, n):
    """Writes a number to a pipe."""
    # So few bytes go at once.
    os.write(fd, SIGNED_STRUCT.pack(n))
