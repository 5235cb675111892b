"""Starting a process as a fresh interpreter. See the standard library's `multiprocessing.popen_spawn_posix`."""

__all__ = ['Popen']

import io
import os
import sys
import threading

from . import _alias, _core, popen_fork, reduction, spawn, util
from .context import set_spawning_popen

_DupFd = reduction._Inherited


class Popen(popen_fork.Popen):
    """A started process: a new interpreter that got the process object as a pickle."""
    method = 'spawn'
    DupFd = _DupFd

    def __init__(self, process_obj):
        self._fds = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return fd

    def give(self, offset, serial):
        """Holds an object for the child: what its pickle calls."""
        self._slot.give(offset, serial)

    def _launch(self, process_obj):
        self._slot = _core.child_slot()
        try:
            self._start(process_obj, self._pickle(process_obj))
        except BaseException:
            self._slot.release()
            raise

    def _pickle(self, process_obj):
        pickle = io.BytesIO()
        set_spawning_popen(self)
        try:
            spawn.dump_child(process_obj, pickle)
        finally:
            set_spawning_popen(None)
        return pickle

    def _start(self, process_obj, pickle):
        arena = _core.arena_descriptor()
        tracker = _tracker_descriptor()
        parent_pid = os.getpid()
        parent_sentinel = _core.own_pidfd()
        try:
            reader, writer = map(util._above_streams, os.pipe())
        except BaseException:
            os.close(parent_sentinel)
            raise
        try:
            command = spawn.get_command_line(
                token=self._slot.token(arena), pipe_handle=reader, parent_sentinel=parent_sentinel,
                parent_pid=parent_pid, dies_with_parent=int(bool(process_obj.daemon)),
                by_main_thread=int(threading.get_native_id() == parent_pid), alias=int(_alias.installed),
                tracker_fd=tracker)
            self._fds += [arena, reader, parent_sentinel] + [tracker] * (tracker is not None)
            self._watch(_core.started(util.spawnv_passfds(spawn.get_executable(), command, self._fds)))
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            os.close(parent_sentinel)
        try:
            # A view that an error's traceback kept would be in the way of the collector.
            with open(writer, 'wb', closefd=True) as file, pickle.getbuffer() as view:
                file.write(view)
        except BrokenPipeError:
            # The child is dead already: its exit code says how.
            pass

    def _let_go(self):
        super()._let_go()
        # A child that died before it joined the tree leaves its place, and what is held for it.
        self._slot.release()


def _tracker_descriptor():
    """The way to the tracker of named resources, if this program may have any: a child's names go to the same one."""
    tracker = sys.modules.get(__package__ + '.resource_tracker')
    return tracker and tracker.getfd()
