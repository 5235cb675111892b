"""Starting a process by fork. See the standard library's `multiprocessing.popen_fork`."""

__all__ = ['Popen']

import os
import signal
import sys
import threading

from . import _core, util

#: The exit code of a process whose status somebody else has taken, as asyncio has it.
_UNKNOWN = 255


class Popen:
    """A started process: its id, and a pidfd that is ready once it has ended."""
    method = 'fork'

    def __init__(self, process_obj):
        util._flush_std_streams()
        self.returncode = None
        self.finalizer = None
        self._parent_pid = os.getpid()
        # Threads may ask at once, and only one of them can wait for the child: the others get what it was told. A signal
        # handler may ask in the midst of it.
        self._asking = threading.RLock()
        self._launch(process_obj)

    def _launch(self, process_obj):
        # The arena is made before the fork, so that what the child makes lives where the parent can open it.
        _core.arena_descriptor()
        parent_pid = os.getpid()
        by_main_thread = threading.get_native_id() == parent_pid
        parent_sentinel = util._pidfd(parent_pid)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                self._run_child(process_obj, parent_pid, by_main_thread, parent_sentinel)
        finally:
            os.close(parent_sentinel)
        self._watch()

    def _watch(self):
        try:
            self.sentinel = util._pidfd(self.pid)
        except BaseException:
            # Another thread took the last descriptor. Nobody would ever wait for the child.
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        self.finalizer = util.Finalize(self, util.close_fds, (self.sentinel,))

    @staticmethod
    def _run_child(process_obj, parent_pid, by_main_thread, parent_sentinel):
        """The child's part: never returns."""
        code = 1
        try:
            util._forget_exit()
            if not process_obj.daemon or Popen._bind(process_obj, parent_pid, by_main_thread):
                code = process_obj._bootstrap(parent_sentinel=parent_sentinel)
        finally:
            util._exit_forked(code)

    @staticmethod
    def _bind(process_obj, parent_pid, by_main_thread):
        """Has this process, a daemon, end with its parent; one that can't be bound doesn't begin."""
        try:
            _core.die_with_parent(parent_pid, by_main_thread)
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
        if self.returncode is None and self._parent_pid == os.getpid():
            with self._asking:
                self._ask(flag)
        return self.returncode

    def _ask(self, flag):
        if self.returncode is not None:
            return
        try:
            end = os.waitid(os.P_PIDFD, self.sentinel, os.WEXITED | flag)
        except ChildProcessError:
            # Somebody else has waited for it, or SIGCHLD is ignored: it has ended, and nobody knows how.
            self.returncode = _UNKNOWN
        else:
            if end is None:
                return
            self.returncode = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        # What it held is given back now, not when it's missed.
        _core.reap()

    def wait(self, timeout=None):
        """The exit code; None if the process hasn't ended after so many seconds."""
        # The sentinel is what is waited for, so that other threads can ask meanwhile.
        if self.returncode is None and util._ready([self.sentinel], timeout):
            return self.poll()
        return self.returncode

    def _send_signal(self, sig):
        # By the sentinel: the process id may be another's by now.
        if self.poll() is None:
            try:
                signal.pidfd_send_signal(self.sentinel, sig)
            except ProcessLookupError:
                pass
            except OSError:
                if self.wait(timeout=0.1) is None:
                    raise

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
