"""The heap: blocks cover their arenas without gaps, and the collector may free at any time."""

import gc
import pickle
import random
import threading
import unittest

import helpers
import procession
from procession import _core, heap


def fill(wrapper, byte):
    view = wrapper.create_memoryview()
    view[:] = bytes([byte]) * len(view)


class Wrappers:

    def test_a_child_writes_into_it(self):
        wrapper = heap.BufferWrapper(100)
        self.ask(fill, wrapper, 7)
        self.assertEqual(bytes(wrapper.create_memoryview()), b'\7' * 100)

    def test_its_child_has_a_heap_of_its_own(self):
        wrapper = heap.BufferWrapper(100)
        fill(wrapper, 3)
        self.assertEqual(self.ask(other_blocks), [100] * 20)
        self.assertEqual(bytes(wrapper.create_memoryview()), b'\3' * 100)


def other_blocks():
    wrappers = [heap.BufferWrapper(100) for _ in range(20)]
    for wrapper in wrappers:
        fill(wrapper, 255)
    return [len(wrapper.create_memoryview()) for wrapper in wrappers]


class ForkWrappersTest(Wrappers, helpers.Case):
    method = 'fork'


class SpawnWrappersTest(Wrappers, helpers.Case):
    method = 'spawn'


class HeapTest(helpers.Case):

    def check(self, made):
        """Free and allocated blocks cover each arena, once."""
        blocks = [block for free in made._len_to_seq.values() for block in free]
        blocks += [(arena, *place) for arena, places in made._allocated_blocks.items() for place in places]
        for arena in made._arenas:
            places = sorted((start, stop) for one, start, stop in blocks if one is arena)
            self.assertEqual([0] + [stop for _, stop in places], [start for start, _ in places] + [arena.size])
        self.assertEqual(sorted(made._len_to_seq), made._lengths)
        free = [(before[2], behind[1]) for before in blocks for behind in blocks if before[0] is behind[0]]
        self.assertTrue(all(stop >= 0 and start >= 0 for stop, start in free))

    def test_blocks_cover_their_arenas(self):
        seed = 20261126
        chosen = random.Random(seed)
        made, blocks = heap.Heap(), []
        made._DISCARD_FREE_SPACE_LARGER_THAN = 0
        for turn in range(3000):
            blocks.append(made.malloc(int(chosen.lognormvariate(0, 1) * 1000)))
            if len(blocks) > 50:
                made.free(blocks.pop(chosen.randrange(50)))
            if turn % 100 == 0:
                self.check(made)
        chosen.shuffle(blocks)
        while blocks:
            made.free(blocks.pop())
        self.check(made)
        self.assertEqual((made._n_mallocs, made._arenas, made._lengths), (made._n_frees, [], []))
        self.assertEqual((made._start_to_block, made._stop_to_block, dict(made._allocated_blocks)), ({}, {}, {}))

    def test_the_collector_frees_in_the_midst_of_it(self):
        thresholds = gc.get_threshold()
        self.addCleanup(gc.set_threshold, *thresholds)
        gc.set_threshold(10)
        for _ in range(3000):
            one, other = heap.BufferWrapper(1), heap.BufferWrapper(1)
            one.other, other.other = other, one

    def test_threads(self):
        def work():
            for size in range(500):
                heap.BufferWrapper(size)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        self.check(heap.BufferWrapper._heap)

    def test_wrong_sizes(self):
        with self.assertRaises(ValueError):
            heap.BufferWrapper(-1)
        with self.assertRaises(OverflowError):
            heap.BufferWrapper(2**63)
        self.assertEqual(len(heap.BufferWrapper(0).create_memoryview()), 0)

    def test_large_arenas_are_given_back(self):
        before = _core.census()['linked_bytes']
        block = heap.BufferWrapper(8 << 20)
        self.assertGreaterEqual(_core.census()['linked_bytes'], before + (8 << 20))
        del block
        gc.collect()
        self.assertEqual(_core.census()['linked_bytes'], before)


class MemoryTest(helpers.Case):
    """What an arena's buffer is."""

    def test_it_is_a_buffer_of_zeros(self):
        memory = _core.Memory(10_000)
        view = memory.create_memoryview()
        self.assertEqual((len(memory), bytes(view), view.readonly), (10_000, bytes(10_000), False))
        view[5] = 9
        self.assertEqual(memoryview(memory)[5], 9)

    def test_a_view_keeps_it(self):
        view = memoryview(_core.Memory(100))
        others = [_core.Memory(100) for _ in range(50)]
        for other in others:
            memoryview(other)[:] = b'x' * 100
        self.assertEqual(bytes(view), bytes(100))

    def test_it_goes_through_a_pickle(self):
        memory = _core.Memory(10)
        same = pickle.loads(pickle.dumps(memory))
        memoryview(same)[0] = 1
        self.assertEqual(memoryview(memory)[0], 1)

    def test_too_much_is_an_error(self):
        before = _core.census()['allocated_bytes']
        with self.assertRaises(MemoryError):
            _core.Memory(1 << 50)
        self.assertEqual(_core.census()['allocated_bytes'], before)
        with self.assertRaises(OverflowError):
            _core.Memory(-1)

    def test_it_goes_with_its_last_holder(self):
        before = _core.census()
        memories = [_core.Memory(5000) for _ in range(20)]
        self.assertEqual(_core.census()['objects'], before['objects'] + 20)
        del memories
        after = _core.census()
        self.assertEqual((after['objects'], after['linked_bytes']), (before['objects'], before['linked_bytes']))

    def test_a_killed_child_gives_back_what_it_made(self):
        before = _core.census()['objects']
        context = procession.get_context('fork')
        child = self.own(context.Process(target=make_and_die, daemon=True))
        child.start()
        child.join()
        self.assertEqual(child.exitcode, -9)
        del child
        self.assertLessEqual(_core.census()['objects'], before)


def make_and_die():
    import os
    memories = [_core.Memory(5000) for _ in range(20)]
    os.kill(os.getpid(), len(memories) and 9)


if __name__ == '__main__':
    unittest.main()
