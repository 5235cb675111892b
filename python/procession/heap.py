"""Blocks cut out of larger pieces of shared memory. See the standard library's `multiprocessing.heap`.

Nothing of this package lies in it: values and arrays have memory of their own, which lives as long as any process has
it. It is for programs that use it by name.
"""

__all__ = ['BufferWrapper']

import bisect
import mmap
import os
import sys
import threading
from collections import defaultdict

from . import _core, reduction, util


class Arena:
    """A piece of shared memory; it has no descriptor, so `fd` is -1."""

    fd = -1

    def __init__(self, size, fd=-1):
        self.size = size
        self.buffer = _core.Memory(size)


def reduce_arena(a):
    return rebuild_arena, (a.size, a.buffer)


def rebuild_arena(size, dupfd):
    """The same arena in another process; `dupfd` is its memory."""
    arena = Arena.__new__(Arena)
    arena.size, arena.buffer = size, dupfd
    return arena


reduction.register(Arena, reduce_arena)


class Heap:
    """Gives out blocks `(arena, start, stop)`: best fit, and neighbours that are free become one."""

    _alignment = 8
    _DISCARD_FREE_SPACE_LARGER_THAN = 4 * 1024 ** 2
    _DOUBLE_ARENA_SIZE_UNTIL = 4 * 1024 ** 2

    def __init__(self, size=mmap.PAGESIZE):
        self._lastpid = os.getpid()
        self._lock = threading.Lock()
        self._size = size
        # Free blocks: their lengths, sorted; those of each length; by start, and by stop.
        self._lengths = []
        self._len_to_seq, self._start_to_block, self._stop_to_block = {}, {}, {}
        # What of each arena is given out; what was given back by who could not have the lock.
        self._allocated_blocks = defaultdict(set)
        self._arenas, self._pending_free_blocks = [], []
        self._n_mallocs = self._n_frees = 0

    def _new_arena(self, size):
        length = -(-max(self._size, size) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._size < self._DOUBLE_ARENA_SIZE_UNTIL:
            self._size *= 2
        util.info('allocating a new mmap of length %d', length)
        arena = Arena(length)
        self._arenas.append(arena)
        return arena, 0, length

    def _discard_arena(self, arena):
        # A small one is kept: making another costs more.
        if arena.size >= self._DISCARD_FREE_SPACE_LARGER_THAN:
            del self._allocated_blocks[arena]
            self._absorb((arena, 0, arena.size))
            self._arenas.remove(arena)

    def _malloc(self, size):
        at = bisect.bisect_left(self._lengths, size)
        if at == len(self._lengths):
            return self._new_arena(size)
        block = self._len_to_seq[self._lengths[at]][-1]
        self._absorb(block)
        return block

    def _add_free_block(self, block):
        arena, start, stop = block
        before, behind = self._stop_to_block.get((arena, start)), self._start_to_block.get((arena, stop))
        if before is not None:
            start, _ = self._absorb(before)
        if behind is not None:
            _, stop = self._absorb(behind)
        block, length = (arena, start, stop), stop - start
        if length not in self._len_to_seq:
            bisect.insort(self._lengths, length)
        self._len_to_seq.setdefault(length, []).append(block)
        self._start_to_block[arena, start] = self._stop_to_block[arena, stop] = block

    def _absorb(self, block):
        arena, start, stop = block
        del self._start_to_block[arena, start], self._stop_to_block[arena, stop]
        same = self._len_to_seq[stop - start]
        same.remove(block)
        if not same:
            del self._len_to_seq[stop - start]
            self._lengths.remove(stop - start)
        return start, stop

    def _free(self, block):
        self._add_free_block(block)
        arena, start, stop = block
        self._allocated_blocks[arena].remove((start, stop))
        if not self._allocated_blocks[arena]:
            self._discard_arena(arena)

    def _free_pending_blocks(self):
        while self._pending_free_blocks:
            self._n_frees += 1
            self._free(self._pending_free_blocks.pop())

    def free(self, block):
        """Takes a block back. The garbage collector may call it in the midst of anything here: it never waits."""
        if os.getpid() != self._lastpid:
            raise ValueError(f'My pid ({os.getpid()}) is not last pid {self._lastpid}')
        self._pending_free_blocks.append(block)
        if self._lock.acquire(False):
            try:
                self._free_pending_blocks()
            finally:
                self._lock.release()

    def malloc(self, size):
        """A block of so many bytes, rounded up."""
        if size < 0:
            raise ValueError(f'Size {size} out of range')
        if sys.maxsize <= size:
            raise OverflowError(f'Size {size} too large')
        if os.getpid() != self._lastpid:
            # Forked: the blocks are the parent's.
            self.__init__()
        with self._lock:
            self._n_mallocs += 1
            self._free_pending_blocks()
            size = -(-max(size, 1) // self._alignment) * self._alignment
            arena, start, stop = self._malloc(size)
            if start + size < stop:
                self._add_free_block((arena, start + size, stop))
            self._allocated_blocks[arena].add((start, start + size))
            return arena, start, start + size


class BufferWrapper:
    """A block that goes back to the heap with this object."""

    _heap = Heap()

    def __init__(self, size):
        block = BufferWrapper._heap.malloc(size)
        self._state = (block, size)
        util.Finalize(self, BufferWrapper._heap.free, args=(block,))

    def create_memoryview(self):
        """A view of its bytes."""
        (arena, start, stop), size = self._state
        return memoryview(arena.buffer)[start:start + size]
