"""Named blocks: found by their name, had when they are made, removed by whoever tracks them."""

import os
import pickle
import resource
import signal
import unittest
import unittest.mock

import helpers
import procession
from helpers import wait_until
from procession import resource_tracker, shared_memory
from procession.shared_memory import ShareableList, SharedMemory


def exists(name):
    return os.path.exists('/dev/shm/' + name.lstrip('/'))


def write(name, data):
    block = SharedMemory(name)
    block.buf[:len(data)] = data
    block.close()


def write_into(block, data):
    block.buf[:len(data)] = data


def make_untracked():
    return SharedMemory(create=True, size=10, track=False).name


def tracker():
    """This process' way to the tracker: is it alive, and does it know the process?"""
    return resource_tracker._resource_tracker._check_alive(), resource_tracker._resource_tracker._pid


class Blocks:
    """With each start method."""

    def block(self, size=100, **options):
        block = SharedMemory(create=True, size=size, **options)
        self.addCleanup(self.remove, block)
        return block

    @staticmethod
    def remove(block):
        block.close()
        if exists(block.name):
            block.unlink()

    def test_a_child_finds_it_by_its_name(self):
        block = self.block()
        self.ask(write, block.name, b'from the child')
        self.assertEqual(bytes(block.buf[:14]), b'from the child')

    def test_it_goes_along_as_an_argument(self):
        block = self.block()
        self.ask(write_into, block, b'by value')
        self.assertEqual(bytes(block.buf[:8]), b'by value')
        self.assertTrue(exists(block.name))

    def test_a_list_goes_along(self):
        items = ShareableList([1, 'two', None])
        self.addCleanup(self.remove, items.shm)
        self.assertEqual(self.ask(list, items), [1, 'two', None])

    def test_an_untracked_one_outlives_the_child(self):
        name = self.ask(make_untracked)
        block = SharedMemory(name, track=False)
        block.close()
        block.unlink()
        self.assertFalse(exists(name))


class ForkBlocksTest(Blocks, helpers.Case):
    method = 'fork'


class SpawnBlocksTest(Blocks, helpers.Case):
    method = 'spawn'

    def test_children_have_their_parents_tracker(self):
        resource_tracker.ensure_running()
        self.assertEqual(self.ask(tracker), (True, None))


class BlockTest(helpers.Case):

    def setUp(self):
        super().setUp()
        self.block = SharedMemory(create=True, size=5000)
        self.addCleanup(Blocks.remove, self.block)

    def test_attributes(self):
        block = self.block
        self.assertRegex(block.name, '^psm_[0-9a-f]{8}$')
        self.assertEqual((block._name, block.size, len(block.buf)), ('/' + block.name, 5000, 5000))
        self.assertEqual(repr(block), f"SharedMemory('{block.name}', size=5000)")
        self.assertTrue(block._track and block._fd >= 0 and block._mmap is not None)
        self.assertEqual(os.stat('/dev/shm/' + block.name).st_mode & 0o777, 0o600)

    def test_wrong_calls(self):
        for options in ({'create': True}, {'create': True, 'size': -1}, {'create': False}, {'size': -1}):
            with self.subTest(options), self.assertRaises(ValueError):
                SharedMemory(**options)
        with self.assertRaises(FileExistsError):
            SharedMemory(self.block.name, create=True, size=1)
        with self.assertRaises(FileNotFoundError):
            SharedMemory('nobody_has_that')
        with self.assertRaises(ValueError):
            SharedMemory('a\0b')

    def test_close_and_unlink_in_any_order(self):
        other = SharedMemory(self.block.name)
        self.block.unlink()
        other.buf[0] = 7
        self.assertEqual(self.block.buf[0], 7)
        with self.assertRaises(FileNotFoundError):
            SharedMemory(self.block.name)
        self.block.close()
        self.block.close()
        self.assertIsNone(self.block.buf)
        self.assertEqual(other.buf[0], 7)
        other.close()

    def test_close_while_somebody_looks_can_be_done_again(self):
        view = self.block.buf[10:20]
        with self.assertRaises(BufferError):
            self.block.close()
        view.release()
        self.block.close()
        self.assertEqual(self.block._fd, -1)

    def test_pickles_are_its_name(self):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            other = pickle.loads(pickle.dumps(self.block, protocol))
            other.buf[0] = protocol
            self.assertEqual(self.block.buf[0], protocol)
            other.close()

    def test_what_is_taken_is_not_made_again(self):
        name, fresh = self.block._name, '/psm_test_' + str(os.getpid())
        names = iter([name, name, fresh])
        with unittest.mock.patch.object(shared_memory, '_make_filename', lambda: next(names)):
            other = SharedMemory(create=True, size=1)
        self.addCleanup(Blocks.remove, other)
        self.assertEqual(other._name, fresh)

    def test_attaching_in_vain_leaves_it_alone(self):
        """The standard unlinks what it can't map."""
        name = f'empty_{os.getpid()}'
        with open('/dev/shm/' + name, 'wb'):
            pass
        self.addCleanup(os.unlink, '/dev/shm/' + name)
        with self.assertRaises(ValueError):
            SharedMemory(name)
        self.assertTrue(exists(name))

    def test_no_memory_is_an_error_when_it_is_made(self):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            try:
                SharedMemory(f'large_{os.getpid()}', create=True, size=2 << 20)
            except MemoryError as error:
                return str(error), exists(f'large_{os.getpid()}')

        context = procession.get_context('fork')
        reader, writer = context.Pipe(False)
        child = self.own(context.Process(target=lambda: writer.send(limited()), daemon=True))
        child.start()
        text, left = reader.recv()
        self.assertRegex(text, 'no 2097152 bytes of shared memory')
        self.assertFalse(left)


class ListTest(helpers.Case):

    def make(self, items):
        made = ShareableList(items)
        self.addCleanup(Blocks.remove, made.shm)
        return made

    def test_all_types(self):
        items = ['text', b'bytes', 1.5, -3, None, True, 2**40, '', 'ä' * 20]
        made = self.make(items)
        self.assertEqual(list(made), items)
        self.assertEqual((len(made), made[-1], made.count(True), made.index(None)), (9, 'ä' * 20, 1, 4))
        self.assertEqual(self.make([1, 'a']).format, 'q8s')
        self.assertEqual(ShareableList.__class_getitem__(int).__origin__, ShareableList)

    def test_items_can_be_replaced_by_what_fits(self):
        made = self.make(['12345678', 1])
        for value in (5, None, False, 'x', b'y', 2.5, 'ä' * 8):
            made[0] = value
            self.assertEqual(made[0], value)
        with self.assertRaisesRegex(ValueError, 'exceeds available storage'):
            made[1] = '123456789'
        with self.assertRaisesRegex(IndexError, 'assignment index out of range'):
            made[2] = 1
        with self.assertRaisesRegex(IndexError, 'index out of range'):
            made[-3]
        with self.assertRaises(KeyError):
            made[0] = []
        self.assertEqual(list(made), ['ä' * 8, 1])

    def test_it_is_found_by_its_name(self):
        made = self.make([1, 2, 3])
        same, copied = ShareableList(name=made.shm.name), pickle.loads(pickle.dumps(made))
        same[0] = 10
        self.assertEqual((made[0], copied[0], list(self.make(made))), (10, 10, [10, 2, 3]))
        self.assertEqual(repr(made), f"ShareableList([10, 2, 3], name='{made.shm.name}')")
        self.assertEqual(list(self.make([])), [])
        same.shm.close()
        copied.shm.close()


class TrackerTest(helpers.Case):
    """Whole programs, since their tracker speaks at their end."""

    def run_program(self, source):
        return self.python('-c', 'from procession.shared_memory import SharedMemory\n' + source)

    def test_what_is_left_behind_is_removed_and_told(self):
        done = self.run_program("print(SharedMemory(create=True, size=1).name)")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr, 'resource_tracker: There appear to be 1 leaked shared_memory objects')
        self.assertFalse(exists(done.stdout.strip()))

    def test_what_was_unlinked_or_is_not_tracked_is_nobodys_affair(self):
        done = self.run_program('''if True:
            SharedMemory(create=True, size=1).unlink()
            block = SharedMemory(create=True, size=1, track=False)
            print(block.name)
        ''')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        os.unlink('/dev/shm/' + done.stdout.strip())

    def test_a_killed_program_leaves_nothing(self):
        program = self.begin('-c', '''if True:
            import time
            from procession.shared_memory import SharedMemory
            block = SharedMemory(create=True, size=1)
            print(block.name, flush=True)
            time.sleep(3600)
        ''')
        name = program.stdout.readline().strip()
        self.assertTrue(exists(name))
        program.kill()
        wait_until(lambda: not exists(name))

    def test_without_named_memory_there_is_no_tracker(self):
        done = self.script('''
            import sys, procession

            def work(lock):
                lock.acquire()

            if __name__ == '__main__':
                context = procession.get_context('spawn')
                child = context.Process(target=work, args=(context.Lock(),))
                child.start()
                child.join()
                print('procession.resource_tracker' in sys.modules)
        ''')
        self.assertEqual((done.stdout.strip(), done.stderr), ('False', ''))

    def test_a_block_that_a_child_made_lives_as_long_as_the_tree(self):
        done = self.script('''
            import procession
            from procession.shared_memory import SharedMemory

            def make():
                return SharedMemory('given_' + str(procession.parent_process().pid), create=True, size=1).name

            if __name__ == '__main__':
                with procession.get_context('spawn').Pool(1) as pool:
                    name = pool.apply(make)
                    pool.close()
                    pool.join()
                block = SharedMemory(name)
                block.unlink()
        ''')
        self.assertEqual((done.returncode, done.stderr), (0, ''))

    def test_a_dead_tracker_is_replaced(self):
        made = resource_tracker.ResourceTracker()
        made.ensure_running()
        first = made._pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not helpers.alive(first))
        with self.assertWarnsRegex(UserWarning, 'resource_tracker: process died unexpectedly'):
            made.ensure_running()
        self.assertNotEqual(made._pid, first)
        made._stop()
        self.assertEqual((made._pid, made._exitcode), (None, 0))
        made._stop()

    def test_signals_that_end_a_group_do_not_end_it(self):
        made = resource_tracker.ResourceTracker()
        made.ensure_running()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(made._pid, number)
        self.assertTrue(made._check_alive())
        made._stop()
        self.assertEqual(made._exitcode, 0)

    def test_any_name_can_be_registered(self):
        made = resource_tracker.ResourceTracker()
        for name in ('/with:colons', '/two\nlines', '/größer', '/back\\slash'):
            made.register(name, 'shared_memory')
            made.unregister(name, 'shared_memory')
        made._stop()
        self.assertEqual(made._exitcode, 0)
        with self.assertRaisesRegex(ValueError, 'msg too long'):
            made.register('a' * 500, 'shared_memory')
        made._stop()

    def test_a_finalizer_that_calls_it_in_the_midst_of_a_call_is_warned(self):
        made = resource_tracker.ResourceTracker()
        made.ensure_running()
        with made._lock:
            with self.assertRaises(resource_tracker.ReentrantCallError):
                made.ensure_running()
            with self.assertWarnsRegex(UserWarning, 'reentrantly'):
                made.register('/some', 'shared_memory')
        made.unregister('/some', 'shared_memory')
        made._stop()
        self.assertEqual(made._exitcode, 0)

    def test_unknown_types_are_an_error_of_the_trackers(self):
        done = self.python('-c', '''if True:
            from procession import resource_tracker
            made = resource_tracker.ResourceTracker()
            made.register('/some', 'nothing')
            made._stop()
            print(made._exitcode)
        ''')
        self.assertEqual(done.stdout.strip(), '3')
        self.assertIn('unknown resource type nothing', done.stderr)


if __name__ == '__main__':
    unittest.main()
