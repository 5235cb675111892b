"""Starting a process by the fork server. See the standard library's `multiprocessing.popen_forkserver`."""

__all__ = ['Popen']

import os

from . import _core, forkserver, popen_spawn_posix, util


class _DupFd:
    """A descriptor that came with the request for a child."""

    def __init__(self, ind):
        self.ind = ind

    def detach(self):
        return forkserver.get_inherited_fds()[self.ind]


class Popen(popen_spawn_posix.Popen):
    """A started process: the server's child, and ours in all that can be seen of it."""
    method = 'forkserver'
    DupFd = _DupFd

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj):
        try:
            super()._launch(process_obj)
        except EOFError:
            if not forkserver._forkserver._has_served:
                raise
            # It died in between, and has let nobody begin who has not read what to do.
            self._fds = []
            super()._launch(process_obj)

    def _start(self, process_obj, pickle):
        self._child = forkserver._forkserver._start(
            self._slot, bool(process_obj.daemon), self._fds, pickle.getvalue())
        self.pid, self.sentinel = self._child.pid, self._child.fileno()
        self.finalizer = util.Finalize(self, self._child.close)

    def poll(self, flag=os.WNOHANG):
        return self.wait(0 if flag == os.WNOHANG else None)

    def wait(self, timeout=None):
        """The exit code; None if the process hasn't ended after so many seconds."""
        if self.returncode is None and self._parent_pid == os.getpid():
            code = self._child.wait(timeout)
            with self._asking:
                if self.returncode is None and code is not None:
                    self.returncode = code
                    # What it held is given back now, not when it's missed; so is a place that it never took.
                    _core.reap()
                    self._slot.release()
        return self.returncode

    def _send_signal(self, sig):
        if self.returncode is None:
            self._child.signal(sig)
