"""Processes: their start, their end, and the rules in between."""

import atexit
import faulthandler
import functools
import gc
import os
import re
import signal
import sys
import threading
import time
import unittest
import weakref

import helpers
import procession
from helpers import alive, hush, wait_until
from procession import _core, connection, process


def nothing(*args, **kwargs):
    pass


def wait_for(reader):
    reader.recv()


def raise_value_error():
    raise ValueError('a text of its own')


def raise_interrupt():
    raise KeyboardInterrupt


def signal_self(number):
    # Some of these dump core, and faulthandler shows what is no fault.
    faulthandler.disable()
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    signal.raise_signal(number)
    time.sleep(60)


def sum_of(writer, a, b=0, *, c=0):
    writer.send(a + b + c)


def who():
    current, parent = procession.current_process(), procession.parent_process()
    return {
        'pid': os.getpid(), 'ident': current.ident, 'name': current.name, 'daemon': current.daemon,
        'identity': current._identity, 'authkey': bytes(current.authkey), 'alive': current.is_alive(),
        'parent': (parent.pid, parent.ident, parent.name, parent.is_alive(), parent.exitcode),
        'children': procession.active_children(), 'method': procession.get_start_method(),
        'repr': repr(current), 'sentinel': isinstance(parent.sentinel, int),
        'waits': parent.join(0.01), 'threads': threading.active_count(),
        'main': threading.current_thread() is threading.main_thread(),
    }


def start_one():
    try:
        procession.Process(target=nothing).start()
    except AssertionError as error:
        return str(error)


def misuse(child):
    """What an object says in a process that didn't make it."""
    said = [repr(child)]
    for call in (child.start, child.join, child.is_alive, child.terminate, child.kill, child.interrupt,
                 lambda: child.exitcode):
        try:
            said.append(call())
        except AssertionError as error:
            said.append(str(error))
    return said


def grandchild(depth):
    me = procession.current_process()
    if depth == 0:
        return [me._identity]
    reader, writer = procession.Pipe(False)
    child = procession.Process(target=helpers.answer, args=(writer, grandchild, (depth - 1,)))
    child.start()
    writer.close()
    below = reader.recv()
    child.join()
    return [me._identity, *below, child.exitcode]


def tell_of_parents_end(writer):
    parent = procession.parent_process()
    writer.send((os.getpid(), parent.is_alive()))
    parent.join()
    writer.send((parent.is_alive(), connection.wait([parent.sentinel]) == [parent.sentinel]))


def parent_of_one(writer):
    procession.Process(target=tell_of_parents_end, args=(writer,)).start()
    time.sleep(3600)


def catch_interrupt(writer):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        writer.send('ready')
        time.sleep(3600)
    except KeyboardInterrupt:
        writer.send('interrupted')


def what_others_see():
    seen = b''
    for name in ('cmdline', 'environ'):
        with open(f'/proc/self/{name}', 'rb') as file:
            seen += file.read()
    return seen, bytes(procession.current_process().authkey)


def count_descriptors():
    return sorted(helpers.descriptors().values())


def leave_thread(path):
    """Leaves a thread that ends after this function has."""
    def write():
        threading.main_thread().join(0.2)
        with open(path, 'a') as file:
            file.write('thread')
    threading.Thread(target=write).start()


def register(path):
    atexit.register(path.write_text, 'atexit')


class Doubles:
    def __init__(self, writer, value):
        super().__init__(name='mine', daemon=True)
        self.writer, self.value = writer, value

    def run(self):
        self.writer.send((self.value * 2, self.name, type(self).__name__, self is procession.current_process()))


class Fork(Doubles, procession.get_context('fork').Process):
    pass


class Spawn(Doubles, procession.get_context('spawn').Process):
    pass


class ForkServer(Doubles, procession.get_context('forkserver').Process):
    pass


class Held(helpers.Case):
    def held(self, **options):
        """A process that runs until it's told to end."""
        reader, writer = self.context.Pipe(False)
        self.addCleanup(reader.close)
        self.addCleanup(writer.close)
        return self.start(wait_for, reader, **options), writer


class Life:
    def test_exit_codes(self):
        expected = [
            (nothing, (), 0),
            (sys.exit, (), 0), (sys.exit, (None,), 0), (sys.exit, (0,), 0), (sys.exit, (7,), 7),
            (sys.exit, (259,), 3), (sys.exit, (-1,), 255), (sys.exit, (True,), 1), (sys.exit, (False,), 0),
            (sys.exit, (1 << 32,), 0), (sys.exit, ((1 << 63) - 1,), 255), (sys.exit, (1 << 63,), 255),
            (sys.exit, (-(1 << 200),), 255), (sys.exit, (2.5,), 1), (sys.exit, ('',), 1),
            (sys.exit, ('a text',), 1), (sys.exit, ((1, 2),), 1),
            (raise_value_error, (), 1), (raise_interrupt, (), 1),
            (os._exit, (0,), 0), (os._exit, (9,), 9),
            *((signal_self, (number,), -number) for number in (
                signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGABRT, signal.SIGSEGV, signal.SIGUSR1)),
        ]
        started = [(self.start(hush, function, *args), function, args, code) for function, args, code in expected]
        for child, function, args, code in started:
            with self.subTest(function=function, args=args):
                child.join()
                self.assertEqual(child.exitcode, code)
                self.assertFalse(child.is_alive())

    def test_what_a_failure_prints(self):
        done = self.script('''
            import procession, sys
            def fail():
                raise ValueError('a text of its own')
            if __name__ == '__main__':
                context = procession.get_context(sys.argv[1])
                for target, args in ((fail, ()), (sys.exit, ('the exit text',)), (sys.exit, (5,))):
                    child = context.Process(target=target, args=args, name='Unlucky')
                    child.start()
                    child.join()
                    print(child.exitcode)
            ''')
        self.assertEqual((done.returncode, done.stdout), (0, '1\n1\n5\n'))
        self.assertRegex(done.stderr, r'\AProcess Unlucky:\nTraceback \(most recent call last\):\n')
        self.assertIn("raise ValueError('a text of its own')\nValueError: a text of its own\n", done.stderr)
        self.assertTrue(done.stderr.endswith('a text of its own\nthe exit text\n'), done.stderr)

    def test_arguments(self):
        reader, writer = self.context.Pipe(False)
        with reader, writer:
            child = self.own(self.context.Process(None, sum_of, 'adder', (writer, 1, 20), {'c': 300}, daemon=True))
            child.start()
            self.assertEqual(reader.recv(), 321)
            child = self.own(self.context.Process(target=sum_of, args=[writer, 1], kwargs={'b': 2}))
            child.start()
            self.assertEqual(reader.recv(), 3)
            child = self.own(self.context.Process(target=sum_of, args=(writer, 1), kwargs=None))
            child.start()
            self.assertEqual(reader.recv(), 1)
            child.join()
            self.assertEqual(child.exitcode, 0)
            child = self.process(functools.partial(sum_of, b=5), writer, 1)
            child.start()
            self.assertEqual(reader.recv(), 6)
        with self.assertRaises(AssertionError):
            self.context.Process(group=object())

    def test_no_target(self):
        child = self.start(None)
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_subclass(self):
        kind = {'fork': Fork, 'spawn': Spawn, 'forkserver': ForkServer}[self.method]
        reader, writer = self.context.Pipe(False)
        with reader, writer:
            child = self.own(kind(writer, 21))
            child.start()
            self.assertEqual(reader.recv(), (42, 'mine', kind.__name__, True))
            child.join()
            self.assertEqual(child.exitcode, 0)

    def test_name(self):
        first, second = self.process(nothing), self.process(nothing)
        pattern = rf'{self.context.Process.__name__}-(\d+)'
        numbers = [int(re.fullmatch(pattern, child.name)[1]) for child in (first, second)]
        self.assertEqual(numbers[0] + 1, numbers[1])
        first.name = 'another'
        self.assertEqual(first.name, 'another')
        with self.assertRaises(AssertionError):
            first.name = 3
        self.assertEqual(self.ask(who, name='told')['name'], 'told')

    def test_daemon(self):
        child = self.context.Process(target=nothing)
        self.assertIs(child.daemon, False)
        child.daemon = True
        self.assertIs(child.daemon, True)
        self.own(child).start()
        with self.assertRaisesRegex(AssertionError, 'process has already started'):
            child.daemon = False
        child.join()
        self.assertTrue(self.ask(who, daemon=True)['daemon'])
        self.assertFalse(self.ask(who, daemon=False)['daemon'])

    def test_ident_and_sentinel(self):
        child = self.process(nothing)
        self.assertIsNone(child.ident)
        self.assertIsNone(child.pid)
        self.assertIsNone(child.exitcode)
        with self.assertRaisesRegex(ValueError, 'process not started'):
            child.sentinel
        child, release = self.held()
        self.assertEqual(child.ident, child.pid)
        self.assertNotEqual(child.pid, os.getpid())
        self.assertTrue(alive(child.pid))
        self.assertIsInstance(child.sentinel, int)
        self.assertEqual(connection.wait([child.sentinel], 0.1), [])
        release.send(None)
        for _ in range(2):
            self.assertEqual(connection.wait([child.sentinel]), [child.sentinel])
        child.join()
        self.assertEqual(connection.wait([child.sentinel]), [child.sentinel])

    def test_authkey(self):
        import pickle
        key = procession.current_process().authkey
        self.assertIsInstance(key, bytes)
        self.assertEqual(len(key), 32)
        self.assertRaises(TypeError, pickle.dumps, key)
        self.assertEqual(self.ask(who)['authkey'], key)
        child = self.process(nothing)
        child.authkey = b'another'
        self.assertEqual(child.authkey, b'another')
        self.assertIs(type(child.authkey), process.AuthenticationString)
        self.assertEqual(procession.current_process().authkey, key)

    def test_once(self):
        child = self.process(nothing)
        with self.assertRaisesRegex(AssertionError, 'can only join a started process'):
            child.join()
        self.assertFalse(child.is_alive())
        child.start()
        with self.assertRaisesRegex(AssertionError, 'cannot start a process twice'):
            child.start()
        child.join()
        with self.assertRaisesRegex(AssertionError, 'cannot start a process twice'):
            child.start()
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_target_is_let_go(self):
        class Target:
            def __call__(self):
                pass
        if self.method != 'fork':
            target = functools.partial(nothing)
        else:
            target = Target()
        gone = weakref.ref(target)
        child = self.start(target)
        del target
        gc.collect()
        self.assertIsNone(gone())
        child.join()

    def test_close(self):
        child, release = self.held()
        with self.assertRaisesRegex(ValueError, 'Cannot close a process while it is still running'):
            child.close()
        self.assertTrue(child.is_alive())
        release.send(None)
        child.join()
        sentinel = child.sentinel
        child.close()
        self.assertRaises(OSError, os.fstat, sentinel)
        for use in (child.start, child.join, child.is_alive, child.terminate, child.kill, child.interrupt,
                    lambda: child.exitcode, lambda: child.ident, lambda: child.sentinel):
            with self.assertRaisesRegex(ValueError, 'process object is closed'):
                use()
        child.close()
        gone = weakref.ref(child)
        # What is to be done after the test refers to it.
        self.doCleanups()
        del child, use
        gc.collect()
        self.assertIsNone(gone())

    def test_close_of_one_that_never_started(self):
        child = self.process(nothing)
        child.close()
        with self.assertRaisesRegex(ValueError, 'process object is closed'):
            child.start()

    def test_join_is_never_early(self):
        child, release = self.held()
        begun = time.monotonic()
        child.join(0.3)
        self.assertGreaterEqual(time.monotonic() - begun, 0.3)
        self.assertTrue(child.is_alive())
        self.assertIsNone(child.exitcode)
        for timeout in (0, 0.0, -1, 1e-9):
            child.join(timeout)
        self.assertTrue(child.is_alive())
        release.send(None)
        child.join(1e9)
        self.assertEqual(child.exitcode, 0)
        child.join(0)

    def test_join_goes_on_after_signals(self):
        child, release = self.held()
        heard = []
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, lambda *_: heard.append(0)))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        begun = time.monotonic()
        child.join(0.3)
        self.assertGreaterEqual(time.monotonic() - begun, 0.3)
        self.assertTrue(child.is_alive())
        threading.Timer(0.3, release.send, (None,)).start()
        child.join()
        self.assertEqual(child.exitcode, 0)
        self.assertGreater(len(heard), 1)

    def test_terminate_and_kill(self):
        for end, code in (('terminate', -signal.SIGTERM), ('kill', -signal.SIGKILL)):
            child, _ = self.held()
            getattr(child, end)()
            child.join()
            self.assertEqual(child.exitcode, code)
            # The process id may be another's by now: nothing is sent.
            getattr(child, end)()

    def test_interrupt(self):
        reader, writer = self.context.Pipe(False)
        with reader, writer:
            child = self.start(catch_interrupt, writer)
            self.assertEqual(reader.recv(), 'ready')
            child.interrupt()
            self.assertEqual(reader.recv(), 'interrupted')
            child.join()
            self.assertEqual(child.exitcode, 0)

    def test_active_children(self):
        child, release = self.held()
        other, _ = self.held()
        self.assertLessEqual({child, other}, set(procession.active_children()))
        release.send(None)
        connection.wait([child.sentinel])
        wait_until(lambda: not alive(child.pid))
        self.assertNotIn(child, procession.active_children())
        # It was joined: not even a zombie is left.
        self.assertFalse(os.path.exists(f'/proc/{child.pid}'))
        self.assertEqual(child.exitcode, 0)
        self.assertIn(other, procession.active_children())

    def test_in_the_child(self):
        reader, writer = self.context.Pipe(False)
        with reader, writer:
            child = self.start(helpers.answer, writer, who, (), daemon=False, name='Child')
            seen = reader.recv()
            child.join()
        self.assertEqual((seen['pid'], seen['ident'], seen['name']), (child.pid, child.pid, 'Child'))
        self.assertEqual(seen['identity'], child._identity)
        self.assertEqual(seen['parent'], (os.getpid(), os.getpid(), procession.current_process().name, True, None))
        self.assertTrue(seen['alive'] and seen['sentinel'] and seen['main'])
        self.assertEqual((seen['children'], seen['method'], seen['threads']), ([], self.method, 1))
        self.assertEqual(seen['repr'], f"<{self.context.Process.__name__} name='Child' parent={os.getpid()} started>")

    def test_here(self):
        main = procession.current_process()
        self.assertEqual((main.name, main._identity, main.ident), ('MainProcess', (), os.getpid()))
        self.assertIsNone(procession.parent_process())
        self.assertTrue(main.is_alive())
        main.close()
        self.assertTrue(main.is_alive())

    def test_parents_end_is_seen(self):
        reader, writer = self.context.Pipe(False)
        with reader:
            child = self.start(parent_of_one, writer, daemon=False)
            pid, alive_at_first = reader.recv()
            self.assertTrue(alive_at_first)
            child.kill()
            child.join()
            self.assertEqual(reader.recv(), (False, True))
            writer.close()
            self.assertRaises(EOFError, reader.recv)
            wait_until(lambda: not alive(pid))

    def test_daemonic_have_no_children(self):
        self.assertEqual(self.ask(start_one, daemon=True), 'daemonic processes are not allowed to have children')
        self.assertIsNone(self.ask(start_one, daemon=False))

    def test_nested(self):
        first, second, third, *codes = self.ask(grandchild, 2, daemon=False)
        self.assertEqual((second, third, codes), ((*first, 1), (*first, 1, 1), [0, 0]))

    def test_threads_of_a_child_are_waited_for(self):
        path = self.folder() / 'log'
        child = self.start(leave_thread, path)
        child.join()
        self.assertEqual((child.exitcode, path.read_text()), (0, 'thread'))

    def test_atexit_of_a_child(self):
        path = self.folder() / 'log'
        path.touch()
        child = self.start(register, path)
        child.join()
        runs = self.method == 'spawn' or sys.version_info >= (3, 13)
        self.assertEqual((child.exitcode, path.read_text()), (0, 'atexit' if runs else ''))

    def test_repr(self):
        kind, me = self.context.Process.__name__, os.getpid()
        child = self.process(nothing, name='n', daemon=False)
        self.assertEqual(repr(child), f"<{kind} name='n' parent={me} initial>")
        child, _ = self.held(name='n')
        self.assertEqual(repr(child), f"<{kind} name='n' pid={child.pid} parent={me} started daemon>")
        child.terminate()
        child.join()
        self.assertEqual(
            repr(child), f"<{kind} name='n' pid={child.pid} parent={me} stopped exitcode=-SIGTERM daemon>")
        child.close()
        self.assertEqual(repr(child), f"<{kind} name='n' parent={me} closed daemon>")
        child = self.start(hush, sys.exit, 3, name='n', daemon=False)
        child.join()
        self.assertEqual(repr(child), f"<{kind} name='n' pid={child.pid} parent={me} stopped exitcode=3>")

    def test_nothing_is_left(self):
        self.ask(nothing)
        gc.collect()
        before, counts = helpers.descriptors(), _core.census()
        for _ in range(5):
            child = self.start(nothing)
            child.join()
            child.close()
        self.assertEqual(helpers.descriptors(), before)
        now = _core.census()
        self.assertEqual((now['processes'], now['objects']), (counts['processes'], counts['objects']))

    def test_siblings_dont_fill_a_childs_descriptors(self):
        alone = self.ask(count_descriptors)
        siblings = [self.held() for _ in range(4)]
        crowded = self.ask(count_descriptors)
        if self.method != 'fork':
            self.assertEqual(len(alone), len(crowded), (alone, crowded))
        else:
            # A fork copies what the parent has: a sentinel and two ends of a pipe for each.
            self.assertEqual(len(alone) + 3 * len(siblings), len(crowded), (alone, crowded))

    def test_many_threads_start_processes(self):
        answers, errors = [], []

        def start(number):
            try:
                for _ in range(3):
                    reader, writer = self.context.Pipe(False)
                    child = self.own(self.context.Process(target=sum_of, args=(writer, number), daemon=True))
                    child.start()
                    writer.close()
                    answers.append(reader.recv())
                    reader.close()
                    child.join()
                    answers.append(child.exitcode)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=start, args=(number,)) for number in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual(sorted(answers), [0] * 18 + sorted([*range(1, 7)] * 3))


class Programs:
    def test_exit_joins_children_and_ends_daemons(self):
        done = self.script('''
            import procession, sys, time
            def slow():
                time.sleep(0.3)
                print('slow', flush=True)
            if __name__ == '__main__':
                context = procession.get_context(sys.argv[1])
                daemon = context.Process(target=time.sleep, args=(3600,), daemon=True)
                daemon.start()
                context.Process(target=slow).start()
                print('main', daemon.pid, flush=True)
            ''')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertRegex(done.stdout, r'\Amain \d+\nslow\n\Z')
        self.assertFalse(alive(int(done.stdout.split()[1])))

    def test_exit_code_passes_through_children(self):
        done = self.script('''
            import procession, sys
            if __name__ == '__main__':
                child = procession.get_context(sys.argv[1]).Process(target=sys.exit, args=(3,))
                child.start()
                child.join()
                sys.exit(child.exitcode + 1)
            ''')
        self.assertEqual((done.returncode, done.stderr), (4, ''))

    DAEMONS = '''
        import os, procession, sys, threading, time
        def sleep(queue):
            queue.put(os.getpid())
            time.sleep(3600)
        def wait(queue, never):
            queue.put(os.getpid())
            never.get()
        if __name__ == '__main__':
            context = procession.get_context(sys.argv[1])
            queue, never = context.Queue(), context.Queue()
            def start():
                for target, args in ((sleep, (queue,)), (wait, (queue, never))):
                    context.Process(target=target, args=args, daemon=True).start()
            start()
            # Another thread, which ends long before the process does: its children stay.
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
            # One that stays.
            staying = threading.Thread(target=lambda: (start(), time.sleep(3600)), daemon=True)
            staying.start()
            pids = [queue.get() for _ in range(6)]
            time.sleep(0.3)
            print(*pids, len(procession.active_children()), flush=True)
            time.sleep(3600)
        '''

    def test_daemons_die_with_a_killed_parent(self):
        folder = self.write(self.folder(), {'program.py': self.DAEMONS})
        program = self.begin(folder / 'program.py', self.method)
        *pids, count = map(int, program.stdout.readline().split())
        self.assertEqual((count, [alive(pid) for pid in pids]), (6, [True] * 6))
        program.kill()
        program.wait()
        wait_until(lambda: not any(map(alive, pids)))

    def test_output_is_written_once(self):
        done = self.script('''
            import procession, sys
            def say():
                print('child', end=' ')
            if __name__ == '__main__':
                print('main', end=' ')
                child = procession.get_context(sys.argv[1]).Process(target=say)
                child.start()
                child.join()
                print('end')
            ''')
        self.assertEqual((done.stdout, done.stderr), ('main child end\n', ''))

    def test_a_parents_atexit_isnt_a_childs(self):
        done = self.script('''
            import atexit, procession, sys
            if __name__ == '__main__':
                atexit.register(print, 'parent')
                child = procession.get_context(sys.argv[1]).Process()
                child.start()
                child.join()
                print(child.exitcode)
            ''')
        self.assertEqual((done.stdout, done.stderr), ('0\nparent\n', ''))

    def test_what_a_fresh_interpreter_leaves_is_finalized(self):
        folder = self.folder()
        (folder / 'in reach').mkdir()
        done = self.script('''
            import os, procession, sys, threading
            class Kept:
                def __init__(self, name):
                    self.name, self.me = name, self
                def __del__(self, write=os.write, is_a_childs=__name__ != '__main__'):
                    if is_a_childs:
                        write(1, self.name + b'\\n')
            def leave(folder, kept):
                global one, file
                one, file = Kept(b'of a module'), open(f'{folder}/file', 'w')
                file.write('whole')
            def leave_in_reach(folder, kept):
                # As who changes a part of the standard library does.
                threading.Thread.leave = leave_in_reach
                leave(folder + '/in reach', kept)
            if __name__ == '__main__':
                for target in leave, leave_in_reach:
                    child = procession.get_context(sys.argv[1]).Process(
                        target=target, args=(FOLDER, Kept(b'an argument')))
                    child.start()
                    child.join()
            '''.replace('FOLDER', repr(str(folder))))
        written = [path.read_text() for path in (folder / 'file', folder / 'in reach/file')]
        if self.method == 'spawn':
            self.assertEqual({*done.stdout.splitlines()}, {'an argument', 'of a module'})
            self.assertEqual(written, ['whole', 'whole'])
        self.assertEqual(done.stderr, '')

    def test_the_standard_librarys_modules_are_loaded_when_they_are_needed(self):
        done = self.script('''
            import procession, sys
            def loaded():
                return sorted({'multiprocessing', 'socket'} & sys.modules.keys())
            def log():
                before = loaded()
                import logging
                logging.basicConfig(format='%(processName)s', stream=sys.stdout)
                logging.warning('')
                print(before, flush=True)
            def ask():
                import multiprocessing.queues
                print(multiprocessing.current_process() is procession.current_process(), flush=True)
                print(multiprocessing.TimeoutError is procession.TimeoutError is procession.context.TimeoutError, flush=True)
            if __name__ == '__main__':
                for target in log, ask:
                    child = procession.get_context(sys.argv[1]).Process(target=target, name='by its name')
                    child.start()
                    child.join()
                print(loaded())
            ''')
        expected = ['by its name', '[]', 'True', 'True', '[]']
        self.assertEqual((done.stdout.splitlines(), done.stderr), (expected, ''))

    def test_stdin_is_the_parents_alone(self):
        done = self.script('''
            import os, procession, sys
            def read():
                print(repr(sys.stdin.read()), flush=True)
            if __name__ == '__main__':
                child = procession.get_context(sys.argv[1]).Process(target=read)
                child.start()
                child.join()
                print(repr(sys.stdin.read()))
            ''', input='what the parent is told')
        self.assertEqual((done.stdout, done.stderr), ("''\n'what the parent is told'\n", ''))

    def test_closed_standard_streams(self):
        done = self.script('''
            import os, procession, sys
            def work(path):
                open(path, 'w').write('done')
            if __name__ == '__main__':
                path = sys.argv[2]
                for fd in (0, 1, 2):
                    os.close(fd)
                sys.stdin = sys.stdout = sys.stderr = None
                child = procession.get_context(sys.argv[1]).Process(target=work, args=(path,))
                child.start()
                child.join()
                os._exit(child.exitcode + 40)
            ''', path := self.folder() / 'log')
        self.assertEqual(done.returncode, 40)
        self.assertEqual(path.read_text(), 'done')

    def test_planted_modules_are_not_imported(self):
        names = ['pickle', 'runpy', 'types', 'struct', 'signal', 'selectors', 'socket', 'logging', 'threading',
                 'multiprocessing', 'procession', 'site', 'sitecustomize', 'random', 'copyreg']
        planted = self.write(self.folder(), {
            f'{name}.py': f'open({name + ".trap"!r}, "w").close()\nraise SystemExit("planted")' for name in names})
        done = self.script('''
            import procession, sys
            def path():
                print(sorted(set(sys.path) - set(sys.argv[2:])), sys.path == sys.argv[2:], flush=True)
            if __name__ == '__main__':
                sys.argv[2:] = sys.path
                child = procession.get_context(sys.argv[1]).Process(target=path)
                child.start()
                child.join()
                print(child.exitcode)
            ''', cwd=planted)
        self.assertEqual((done.stdout, done.stderr), ('[] True\n0\n', ''))
        self.assertEqual(list(planted.glob('*.trap')), [])


class Reaped:
    """Children whose status others have taken: not with a fork server, whose children aren't ours to wait for."""

    def test_a_process_id_that_is_anothers_by_now(self):
        """A child that somebody else has waited for is not found by its id: another process may have that."""
        child, release = self.held()
        bystander, _ = self.held()
        release.send(None)
        pid, status = os.waitpid(child.pid, 0)
        self.assertEqual((pid, status), (child.pid, 0))
        child._popen.pid = bystander.pid
        child.terminate()
        child.kill()
        self.assertFalse(child.is_alive())
        child.join()
        self.assertEqual(child.exitcode, helpers.TAKEN(0))
        self.assertNotIn(child, procession.active_children())
        child.close()
        self.assertTrue(bystander.is_alive())

    def test_children_that_the_kernel_waits_for(self):
        with helpers.handling(signal.SIGCHLD, signal.SIG_IGN):
            child, release = self.held()
            child.join(0.01)
            self.assertTrue(child.is_alive())
            release.send(None)
            child.join()
            self.assertEqual((child.is_alive(), child.exitcode), (False, helpers.TAKEN(0)))
            self.assertNotIn(child, procession.active_children())
            killed, _ = self.held()
            killed.kill()
            killed.join()
            self.assertEqual(killed.exitcode, helpers.TAKEN(-9))


class ForkLifeTest(Life, Held):
    method = 'fork'


class SpawnLifeTest(Life, Held):
    method = 'spawn'


class ForkReapedTest(Reaped, Held):
    method = 'fork'


class SpawnReapedTest(Reaped, Held):
    method = 'spawn'


class ForkServerLifeTest(Life, Held):
    method = 'forkserver'


class ForkProgramsTest(Programs, helpers.Case):
    method = 'fork'

    def test_an_unguarded_main_works(self):
        done = self.script('''
            import procession, sys
            child = procession.get_context(sys.argv[1]).Process(target=print, args=('child',))
            child.start()
            child.join()
            print(child.exitcode)
            ''')
        self.assertEqual((done.stdout, done.stderr), ('child\n0\n', ''))


class ForkOnlyTest(helpers.Case):
    method = 'fork'

    def test_another_process_object(self):
        """Only who made it may start it, wait for it, end it, or ask how it ended."""
        said = ['can only start a process object created by current process', 'can only join a child process',
                'can only test a child process', 'can only terminate a child process', 'can only kill a child process',
                'can only interrupt a child process']
        mine = self.process(nothing, name='n', daemon=False)
        unknown = f"<ForkProcess name='n' parent={os.getpid()} unknown>"
        # One that never ran has no exit code, whoever asks.
        self.assertEqual(self.ask(misuse, mine, daemon=False), [unknown, *said, None])
        mine = self.start(time.sleep, 3600, name='n', daemon=False)
        unknown = f"<ForkProcess name='n' pid={mine.pid} parent={os.getpid()} unknown>"
        said.append('can only ask for the exit code of a child process')
        self.assertEqual(self.ask(misuse, mine, daemon=False), [unknown, *said])
        self.assertTrue(mine.is_alive())

    def test_another_process_object_with_optimised_code(self):
        folder = self.write(self.folder(), {'program.py': f'''
            import procession, test_process
            child = procession.get_context('fork').Process(target=test_process.time.sleep, args=(3600,), daemon=True)
            child.start()
            asker = procession.get_context('fork').Process(target=lambda: print(*test_process.misuse(child), sep=';'))
            asker.start()
            asker.join()
            print(child.is_alive())
            '''})
        done = self.python('-O', folder / 'program.py', env={
            'PYTHONPATH': f'{helpers.HOME}{os.pathsep}{os.path.dirname(__file__)}'})
        self.assertEqual((done.stdout.count('can only'), done.stdout.endswith('\nTrue\n'), done.stderr), (7, True, ''))

    def test_closures_go_along(self):
        value = object()
        self.assertTrue(self.ask(lambda: value is not None))

    def test_after_forkers(self):
        from procession import util

        class Holder:
            number = 1
        holder = Holder()
        util.register_after_fork(holder, lambda it: setattr(it, 'number', it.number + 1))
        self.assertEqual(self.ask(lambda: holder.number), 2)
        self.assertEqual(holder.number, 1)

    def test_standard_input_is_made_anew_when_the_program_has_closed_it(self):
        """Children have it from their parent, where its number may have gone to another file, or none be left."""
        done = self.script('''
            import os, procession, sys
            from procession import util
            def read():
                print(repr(sys.stdin.read()), sys.stdin.fileno() > 2, sys.__stdin__.closed, flush=True)
                # As does one that becomes a daemon.
                os.closerange(3, util._null_fd + 1)
                context.Process(target=lambda: print(repr(sys.stdin.read()), flush=True)).start()
            def child():
                child = context.Process(target=read)
                child.start()
                child.join()
            context = procession.get_context('fork')
            child()
            reader, writer = os.pipe()
            os.write(writer, b'not for children')
            os.close(writer)
            os.dup2(reader, util._null_fd)
            child()
            util._null_input.close()
            child()
            ''', input='nor this')
        self.assertEqual((done.stdout, done.stderr), ("'' True True\n''\n" * 3, ''))

    def test_a_sibling_does_not_keep_a_pipe_open(self):
        """A sentinel is a pidfd: a sibling that inherits it doesn't hide the end."""
        first = self.start(time.sleep, 3600)
        self.start(time.sleep, 3600)
        first.kill()
        self.assertEqual(connection.wait([first.sentinel]), [first.sentinel])


class ForkServerProgramsTest(Programs, helpers.Case):
    method = 'forkserver'


class SpawnOnlyTest(Programs, helpers.Case):
    method = 'spawn'

    def leaks_nothing(self, fail):
        self.ask(nothing)
        gc.collect()
        before, counts, children = helpers.descriptors(), _core.census(), procession.active_children()
        for _ in range(5):
            fail()
        gc.collect()
        self.assertEqual(helpers.descriptors(), before)
        now = _core.census()
        self.assertEqual((now['processes'], now['objects']), (counts['processes'], counts['objects']))
        self.assertEqual(procession.active_children(), children)
        self.assertEqual(self.ask(nothing), None)

    def test_many_threads_give_a_childs_place_back(self):
        # Whoever starts a process polls all children, at the same time as others do: two may see the same one's end.
        errors = []

        def release(slot, all_there):
            try:
                all_there.wait()
                slot.release()
            except BaseException as error:
                errors.append(error)

        for _ in range(100):
            arguments = (_core.child_slot(), threading.Barrier(4))
            threads = [threading.Thread(target=release, args=arguments) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(errors, [])

    def test_a_target_that_cant_be_pickled(self):
        import pickle

        def fail():
            child = self.context.Process(target=lambda: None, args=(self.context.Queue(), self.context.Lock()))
            with self.assertRaises((pickle.PicklingError, AttributeError)):
                child.start()
            self.assertFalse(child.is_alive())
            self.assertIsNone(child.exitcode)

        self.leaks_nothing(fail)

    def test_a_target_that_cant_be_pickled_after_what_can(self):
        def fail():
            reader, writer = self.context.Pipe(False)
            with reader, writer:
                with self.assertRaises(TypeError):
                    self.context.Process(target=nothing, args=(writer, self.context.Queue(), file)).start()

        with open(os.devnull) as file:
            self.leaks_nothing(fail)

    def test_no_such_executable(self):
        from procession import spawn
        self.addCleanup(spawn.set_executable, spawn.get_executable())

        def fail():
            queue = self.context.Queue()
            executable = spawn.get_executable()
            spawn.set_executable('/nowhere/python')
            try:
                with self.assertRaises(FileNotFoundError):
                    self.context.Process(target=nothing, args=(queue,)).start()
            finally:
                spawn.set_executable(executable)

        self.leaks_nothing(fail)

    def test_an_executable_that_is_no_python(self):
        from procession import spawn

        def fail():
            executable = spawn.get_executable()
            spawn.set_executable('/bin/false')
            try:
                # More than fits into the pipe: the child is gone before it's written.
                child = self.context.Process(target=nothing, args=(b'x' * (1 << 20), self.context.Queue()))
                child.start()
            finally:
                spawn.set_executable(executable)
            child.join()
            self.assertEqual(child.exitcode, 1)
            child.close()

        self.leaks_nothing(fail)

    def test_an_object_that_cant_be_unpickled(self):
        done = self.script('''
            import procession
            def fail():
                raise ValueError('while it is unpickled')
            class Refuses:
                def __reduce__(self):
                    return fail, ()
            if __name__ == '__main__':
                child = procession.get_context('spawn').Process(target=print, args=(Refuses(),))
                child.start()
                child.join()
                print(child.exitcode)
            ''')
        self.assertEqual(done.stdout, '1\n')
        self.assertIn('ValueError: while it is unpickled', done.stderr)

    def test_the_key_is_not_to_be_seen(self):
        """Neither the command line nor the environment has it: others of this user could read them."""
        key = bytes(procession.current_process().authkey)
        seen, theirs = self.ask(what_others_see)
        self.assertEqual(theirs, key)
        for written in (key, key.hex().encode(), repr(key).encode()):
            self.assertNotIn(written, seen)

    def test_a_large_pickle(self):
        child = self.start(nothing, b'x' * (20 << 20))
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_main_is_imported_under_another_name(self):
        done = self.script('''
            import procession, sys
            print('top', __name__, flush=True)
            class Kept:
                pass
            def show(kept):
                import __main__, __mp_main__
                print(type(kept) is Kept, __main__ is __mp_main__, __name__, Kept.__module__, sys.argv[1:],
                      __file__ == sys.argv[0], flush=True)
            if __name__ == '__main__':
                child = procession.get_context('spawn').Process(target=show, args=(Kept(),))
                child.start()
                child.join()
            ''')
        self.assertEqual(done.stderr, '')
        self.assertEqual(done.stdout, "top __main__\ntop __mp_main__\nTrue True __mp_main__ __mp_main__ "
                                      "['spawn'] True\n")

    def test_the_interpreters_flags_go_along(self):
        folder = self.write(self.folder(), {'program.py': '''
            import procession, sys
            def show():
                print(sys.flags.optimize, sys.warnoptions, sys.flags.dev_mode, flush=True)
            if __name__ == '__main__':
                child = procession.get_context('spawn').Process(target=show)
                child.start()
                child.join()
            '''})
        done = self.python('-O', '-W', 'error::UserWarning', folder / 'program.py')
        self.assertEqual((done.stdout, done.stderr), ("1 ['error::UserWarning'] False\n", ''))


class ContextTest(helpers.Case):
    def test_start_methods(self):
        methods = procession.get_all_start_methods()
        self.assertEqual(sorted(methods), ['fork', 'forkserver', 'spawn'])
        for method in methods:
            context = procession.get_context(method)
            self.assertEqual(context.get_start_method(), method)
            self.assertTrue(type(context).__name__.lower().startswith(method))
            self.assertTrue(context.Process.__name__.lower().startswith(method))
            self.assertIs(context.get_context(), context)
            with self.assertRaises(ValueError):
                context.set_start_method('fork')
        with self.assertRaisesRegex(ValueError, "cannot find context for 'nothing'"):
            procession.get_context('nothing')

    def test_the_choice_is_made_once(self):
        done = self.script('''
            import procession
            if __name__ == '__main__':
                for method in ('fork', 'spawn'):
                    # To use a context is no choice.
                    child = procession.get_context(method).Process(target=len, args=('',))
                    child.start()
                    child.join()
                print(procession.get_start_method(allow_none=True))
                procession.set_start_method('spawn')
                print(procession.get_start_method())
                try:
                    procession.set_start_method('fork')
                except RuntimeError as error:
                    print(error)
                procession.set_start_method('fork', force=True)
                print(procession.get_start_method())
                procession.set_start_method(None, force=True)
                print(procession.get_start_method(allow_none=True))
            ''')
        self.assertEqual(done.stdout, 'None\nspawn\ncontext has already been set\nfork\nNone\n')


if __name__ == '__main__':
    unittest.main()
