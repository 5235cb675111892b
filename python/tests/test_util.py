"""Finalizers, what knows of forks, logging, and the order in which a process ends: the standard library's own."""

import gc
import io
import os
import subprocess
import sys
import textwrap
import unittest
from unittest import mock

import helpers
import procession
from procession import util


class Thing:
    pass


class FinalizeTest(helpers.Case):
    def setUp(self):
        super().setUp()
        before = util._finalizer_registry.copy()
        util._finalizer_registry.clear()
        self.addCleanup(util._finalizer_registry.update, before)
        self.addCleanup(util._finalizer_registry.clear)

    def test_order(self):
        """The highest priority first, then the newest; without one only with its object."""
        said = []
        for name, priority in (('a0', 0), ('b10', 10), ('c-5', -5), ('d10', 10), ('e0', 0)):
            util.Finalize(None, said.append, args=(name,), exitpriority=priority)
        thing = Thing()
        util.Finalize(thing, said.append, args=('thing',))
        util._run_finalizers(0)
        self.assertEqual(said, ['d10', 'b10', 'e0', 'a0'])
        util._run_finalizers()
        self.assertEqual(said, ['d10', 'b10', 'e0', 'a0', 'c-5'])
        # All are forgotten after the last round.
        del thing
        gc.collect()
        self.assertEqual((said[5:], util._finalizer_registry), ([], {}))

    def test_once(self):
        said, thing = [], Thing()
        finalizer = util.Finalize(thing, lambda *args, **kwargs: said.append((args, kwargs)) or 'value', (1,), {'b': 2})
        self.assertTrue(finalizer.still_active())
        self.assertEqual(finalizer(), 'value')
        self.assertFalse(finalizer.still_active())
        self.assertIsNone(finalizer())
        finalizer.cancel()
        del thing
        gc.collect()
        self.assertEqual(said, [((1,), {'b': 2})])

    def test_cancelled(self):
        said, thing = [], Thing()
        finalizer = util.Finalize(thing, said.append, (1,), exitpriority=3)
        finalizer.cancel()
        finalizer.cancel()
        self.assertFalse(finalizer.still_active())
        self.assertIsNone(finalizer())
        util._run_finalizers()
        del thing
        self.assertEqual(said, [])

    def test_with_its_object(self):
        said, thing = [], Thing()
        util.Finalize(thing, said.append, ('gone',), exitpriority=1)
        del thing
        gc.collect()
        self.assertEqual(said, ['gone'])
        util._run_finalizers()
        self.assertEqual(said, ['gone'])

    def test_one_that_fails_does_not_stop_the_rest(self):
        said = []
        util.Finalize(None, said.append, ('last',), exitpriority=1)
        util.Finalize(None, lambda: 1 / 0, exitpriority=2)
        with mock.patch('sys.stderr', io.StringIO()) as stderr:
            util._run_finalizers()
        self.assertEqual(said, ['last'])
        self.assertIn('ZeroDivisionError', stderr.getvalue())

    def test_one_that_makes_and_cancels_others(self):
        said = []
        doomed = util.Finalize(None, said.append, ('doomed',), exitpriority=1)

        def act():
            doomed.cancel()
            util.Finalize(None, said.append, ('late',), exitpriority=9)

        util.Finalize(None, act, exitpriority=5)
        util._run_finalizers(0)
        self.assertEqual(said, [])
        util._run_finalizers(0)
        self.assertEqual(said, ['late'])

    def test_arguments(self):
        with self.assertRaisesRegex(ValueError, 'Without object, exitpriority cannot be None'):
            util.Finalize(None, print)
        for priority in ('1', 1.5):
            with self.assertRaisesRegex(TypeError, 'must be None or int'):
                util.Finalize(None, print, exitpriority=priority)

    def test_repr(self):
        thing = Thing()
        finalizer = util.Finalize(thing, print, (1,), {'end': ''}, exitpriority=7)
        self.assertEqual(repr(finalizer), "<Finalize object, callback=print, args=(1,), kwargs={'end': ''}, exitpriority=7>")
        finalizer.cancel()
        self.assertEqual(repr(finalizer), '<Finalize object, dead>')

    def test_a_childs_are_its_own(self):
        """A forked child runs none of its parent's, not even when it drops the object."""
        reader, writer = procession.Pipe(False)
        things = [Thing()]
        util.Finalize(None, writer.send, ('of the parent',), exitpriority=1)
        kept = util.Finalize(things[0], writer.send, ('of the parent',))

        def work():
            things.clear()
            kept()
            util.Finalize(None, writer.send, ('of the child',), exitpriority=1)

        with reader, writer:
            child = self.own(procession.get_context('fork').Process(target=work))
            child.start()
            child.join()
            self.assertEqual(child.exitcode, 0)
            self.assertEqual(reader.recv(), 'of the child')
            self.assertFalse(reader.poll())
            util._finalizer_registry.clear()


class ForksTest(helpers.Case):
    method = 'fork'

    def test_order(self):
        """In the order of registration; the gone and those that fail are passed over."""
        said = []
        things = [Thing() for _ in range(4)]
        for number, thing in enumerate(things):
            util.register_after_fork(thing, lambda it, number=number: said.append((it is things[number], 1 / (number - 1))))
        gone = Thing()
        util.register_after_fork(gone, lambda it: said.append('gone'))
        del gone
        self.assertEqual(self.ask(lambda: said), [(True, -1.0), (True, 1.0), (True, 0.5)])
        self.assertEqual(said, [])

    def test_a_lock_is_free_in_the_child(self):
        lock = util.ForkAwareThreadLock()
        with lock:
            self.assertFalse(lock.acquire(False))
            self.assertEqual(self.ask(lambda: (lock.acquire(False), lock.acquire(False))), (True, False))
        self.assertTrue(lock.acquire(False))
        lock.release()

    def test_a_local_is_empty_in_the_child(self):
        local = util.ForkAwareLocal()
        local.number = 3
        self.assertEqual(self.ask(lambda: hasattr(local, 'number')), False)
        self.assertEqual(local.number, 3)
        kind, arguments = local.__reduce__()
        self.assertEqual((kind, arguments), (util.ForkAwareLocal, ()))


class DescriptorsTest(helpers.Case):
    def test_only_what_is_passed(self):
        pipes = [os.pipe() for _ in range(3)]
        for pair in pipes:
            for fd in pair:
                os.set_inheritable(fd, True)
                self.addCleanup(os.close, fd)
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        # Asked for one by one: a list of them would take a descriptor itself.
        code = textwrap.dedent(f'''
            import os
            seen = []
            for fd in range(1000):
                try:
                    os.fstat(fd)
                except OSError:
                    continue
                seen.append(fd)
            print(*seen, file=open({writer}, 'w', closefd=False))
        ''')
        pid = util.spawnv_passfds(os.fsencode(sys.executable), [sys.executable, b'-c', code], [writer, pipes[1][0]])
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        os.close(writer)
        seen = set(map(int, os.read(reader, 1000).split()))
        self.assertEqual(seen - {0, 1, 2}, {writer, pipes[1][0]})
        self.assertFalse(subprocess._active)

    def test_all_but(self):
        done = self.python('-c', '''if True:
            import os
            from procession import util
            opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
            util.close_all_fds_except([0, 1, 2, opened[2]])
            left = []
            for fd in range(100):
                try:
                    os.fstat(fd)
                    left.append(fd)
                except OSError:
                    pass
            print(left == [0, 1, 2, opened[2]])
            ''')
        self.assertEqual((done.stdout, done.stderr), ('True\n', ''))


#: Says what happens, in which order, while a program and its child end.
ORDER = '''
import atexit, importlib, os, sys, threading, time
import logging
name, method = sys.argv[1:3]
mp, util = importlib.import_module(name), importlib.import_module(name + '.util')
kept = []

class Thing:
    pass

def say(*words):
    print(*words, flush=True)

def register(who):
    atexit.register(say, who, 'first atexit')
    for priority in (0, -7, 10, None, 10, 3):
        kept.append(Thing())
        util.Finalize(kept[-1], say, (who, 'finalizer', len(kept), priority), exitpriority=priority)
    atexit.register(say, who, 'second atexit')
    threading.Thread(target=late, args=(who,)).start()

def late(who):
    threading.main_thread().join()
    say(who, 'thread')
    util.Finalize(None, say, (who, "finalizer of the thread's"), exitpriority=5)

def work(who, end):
    register(who)
    print(who, 'ends', flush=True)
    if end == 'raise':
        sys.stderr = open(os.devnull, 'w')
        raise ValueError
    if end == 'exit':
        sys.exit(3)
    if end == 'os._exit':
        os._exit(4)
    print(who, 'without a flush')

def linger(seconds):
    time.sleep(seconds)
    say('lingered')

if __name__ == '__main__':
    register('parent')
    context = mp.get_context(method)
    for end in ('return', 'raise', 'exit', 'os._exit'):
        child = context.Process(target=work, args=('child that ends by ' + end, end))
        child.start()
        child.join()
        say(child.exitcode)
    context.Process(target=linger, args=(0.3,)).start()
    context.Process(target=linger, args=(3600,), daemon=True).start()
    atexit.register(lambda: say('is exiting:', util.is_exiting()))
    say('parent ends')
'''

#: Logs what starting and ending processes says.
LOGGED = '''
import importlib, logging, os, sys
name, method = sys.argv[1:3]
mp, util = importlib.import_module(name), importlib.import_module(name + '.util')

def work():
    util.info('in the child')
    mp.get_logger().warning('of %s', mp.current_process().name)

if __name__ == '__main__':
    logger = mp.log_to_stderr(logging.INFO)
    assert logger is mp.get_logger() is logging.getLogger('multiprocessing')
    child = mp.get_context(method).Process(target=work, name='Child')
    child.start()
    child.join()
    util.sub_debug('below what is logged')
    util.info('in the parent')
'''


class AsTheStandard:
    """Programs that do the same under both packages."""
    maxDiff = None

    def run_both(self, source):
        folder = self.write(self.folder(), {'program.py': source})
        return [self.python(folder / 'program.py', name, self.method) for name in ('multiprocessing', 'procession')]

    def test_the_order_of_the_end(self):
        theirs, ours = self.run_both(ORDER)
        self.assertEqual((ours.stderr, ours.returncode), (theirs.stderr, theirs.returncode))
        self.assertEqual(ours.stdout, theirs.stdout)
        self.assertIn('parent second atexit\nparent first atexit', ours.stdout)

    def test_logging(self):
        theirs, ours = self.run_both(LOGGED)
        self.assertEqual((ours.stdout, ours.returncode), (theirs.stdout, theirs.returncode))
        # The standard's fork server has a folder.
        lines = [line for line in theirs.stderr.splitlines() if 'temp directory' not in line]
        self.assertEqual(ours.stderr.splitlines(), lines)
        self.assertIn('[WARNING/Child] of Child', lines)

    def test_what_atexit_prints_is_flushed(self):
        done = self.script('''
            import atexit, procession, sys
            def work():
                atexit.register(print, 'atexit')
            if __name__ == '__main__':
                child = procession.get_context(sys.argv[1]).Process(target=work)
                child.start()
                child.join()
                print(child.exitcode)
            ''')
        runs = self.method == 'spawn' or sys.version_info >= (3, 13)
        self.assertEqual((done.stdout, done.stderr), ('atexit\n' * runs + '0\n', ''))

    def test_standard_streams_that_are_closed_or_gone(self):
        """They keep neither the work nor a failure's exit code from being done."""
        for streams in ('sys.stdin.close(); sys.stdout.close(); sys.stderr.close()',
                        'sys.stdin = sys.stdout = sys.stderr = None',
                        'os.close(0); os.close(1); os.close(2)'):
            with self.subTest(streams=streams):
                done = self.script(f'''
                    import os, procession, sys
                    def work(path, fail):
                        open(path, 'a').write('done ')
                        if fail:
                            raise ValueError
                    if __name__ == '__main__':
                        {streams}
                        codes = []
                        for fail in (False, True):
                            child = procession.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[2], fail))
                            child.start()
                            child.join()
                            codes.append(child.exitcode)
                        os._exit(40 + codes[0] * 2 + codes[1])
                    ''', path := self.folder() / 'log')
                self.assertEqual(done.returncode, 41, done.stderr)
                self.assertEqual(path.read_text(), 'done done ')

    def test_a_folder_for_temporary_files(self):
        done = self.script('''
            import os, procession, sys
            from procession import util
            def work():
                print(util.get_temp_dir(), flush=True)
            if __name__ == '__main__':
                print(util.get_temp_dir(), util.get_temp_dir(), flush=True)
                child = procession.get_context(sys.argv[1]).Process(target=work)
                child.start()
                child.join()
                print(os.path.isdir(util.get_temp_dir()), oct(os.stat(util.get_temp_dir()).st_mode & 0o777))
            ''')
        first, second, theirs, is_there, mode = done.stdout.split()
        self.assertEqual((first, is_there, mode, done.stderr), (second, 'True', '0o700', ''))
        self.assertFalse(os.path.exists(first))
        # A child has its parent's, which doesn't go with it.
        self.assertEqual(first, theirs)


class ForkAsTheStandardTest(AsTheStandard, helpers.Case):
    method = 'fork'


class SpawnAsTheStandardTest(AsTheStandard, helpers.Case):
    method = 'spawn'


class ForkServerAsTheStandardTest(AsTheStandard, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
