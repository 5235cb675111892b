"""Starting a process by fork. See the standard library's `multiprocessing.popen_fork`."""

__all__ = ['Popen']

import os
import signal
import sys
import threading

from . import _core, util


class Popen:
    """A started process: its id, and a pidfd that is ready once it has ended."""
    method = 'fork'

    def __init__(self, process_obj):
        util._flush_std_streams()
        self.returncode = None
        self.finalizer = None
        self._parent_pid = os.getpid()
        self._launch(process_obj)

    def _launch(self, process_obj):
        # What can be done before the fork is done here: each page that the child writes to is copied for it.
        # The arena is made before, so that what the child makes lives where the parent can open it.
        _core.arena_descriptor()
        daemon = process_obj.daemon
        by_main_thread = daemon and threading.get_native_id() == self._parent_pid
        parent_sentinel = _core.own_pidfd()
        try:
            util._open_null_input()
            pid = os.fork()
            if pid == 0:
                # The child's part: never returns.
                code = 1
                try:
                    if util._CHILDREN_RUN_ATEXIT:
                        util._forget_exit()
                    if not daemon or self._bind(process_obj, by_main_thread):
                        code = process_obj._bootstrap(parent_sentinel=parent_sentinel)
                finally:
                    util._exit_forked(code)
        finally:
            os.close(parent_sentinel)
        self._watch(_core.started(pid))

    def _watch(self, child):
        self._child = child
        self.pid, self.sentinel = child.pid, child.fileno()
        # It goes with this object; a `Finalize` would be a dozen objects more to make.
        self.finalizer = child.close

    def _bind(self, process_obj, by_main_thread):
        """Has this process, a daemon, end with its parent; one that can't be bound doesn't begin."""
        try:
            _core.die_with_parent(self._parent_pid, by_main_thread)
        except OSError as e:
            sys.stderr.write('Process %s: %s\n' % (process_obj.name, e))
            util._flush_std_streams()
            return False
        return True

    def __reduce__(self):
        raise TypeError('a process that was started belongs to the process that started it')

    def duplicate_for_child(self, fd):
        """The number that a descriptor has in the child."""
        return fd

    def poll(self, flag=os.WNOHANG):
        """The exit code, if the process has ended."""
        return self.wait(0 if flag == os.WNOHANG else None)

    def wait(self, timeout=None):
        """The exit code; None if the process hasn't ended after so many seconds."""
        if self.returncode is None and self._parent_pid == os.getpid():
            code = self._child.wait(timeout)
            # Another thread, or a signal handler, may have been told meanwhile.
            if self.returncode is None and code is not None:
                self.returncode = code
                self._let_go()
        return self.returncode

    def _let_go(self):
        # What it held is given back now, not when it's missed.
        _core.reap()

    def _send_signal(self, sig):
        # By its pidfd, and not if somebody else has waited for it: its id may be another's by now.
        if self.poll() is None:
            self._child.signal(sig)

    def interrupt(self):
        self._send_signal(signal.SIGINT)

    def terminate(self):
        self._send_signal(signal.SIGTERM)

    def kill(self):
        self._send_signal(signal.SIGKILL)

    def close(self):
        """Closes the sentinel."""
        if self.finalizer is not None:
            self.finalizer()
