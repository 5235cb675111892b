"""Starting a process by the fork server. See the standard library's `multiprocessing.popen_forkserver`."""

__all__ = ['Popen']

from . import forkserver, popen_spawn_posix


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
            if not forkserver._forkserver._may_do_better():
                raise
            # It died in between, or the child did, and has let nobody begin who has not read what to do.
            self._fds = []
            super()._launch(process_obj)

    def _start(self, process_obj, pickle):
        self._watch(forkserver._forkserver._start(
            self._slot, bool(process_obj.daemon), self._fds, pickle.getvalue()))
