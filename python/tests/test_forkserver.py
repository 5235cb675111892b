"""The fork server: what it loads, what it survives, and how exactly its children are ours."""

import contextlib
import gc
import os
import random
import signal
import socket
import sys
import threading
import time
import unittest

import helpers
import procession
from helpers import alive, process_state, wait_until
from procession import _core, connection, forkserver

SERVER = forkserver._forkserver

#: Printed and replayed by: SEED=… python -m unittest …
SEED = int(os.environ.get('SEED', '1'))


def nothing(*_):
    pass


def echo(value):
    return value


def where():
    """A child's place among processes, as it sees it."""
    parent = procession.parent_process()
    return os.getpid(), os.getppid(), parent.pid, parent.name, parent.is_alive()


def wait_for(reader, code=7):
    """Lives until it's told to end."""
    with contextlib.suppress(EOFError):
        reader.recv()
    sys.exit(code)


def raise_signal(number):
    signal.raise_signal(number)


def kill_after(seconds, pidfd):
    """Kills a process, if it hasn't ended by then."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def exit_now(code):
    os._exit(code)


def use(lock, queue, value):
    with lock:
        value.value += 1
        queue.put(value.value)


def start_another(method):
    """Starts a grandchild; where both have come from."""
    reader, writer = procession.get_context(method).Pipe(False)
    child = procession.get_context(method).Process(target=helpers.answer, args=(writer, where, ()))
    child.start()
    writer.close()
    seen = reader.recv()
    child.join()
    return where(), seen, child.exitcode, forkserver._forkserver._forkserver_pid


def handlers():
    return (signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGCHLD),
            signal.pthread_sigmask(signal.SIG_BLOCK, []))


def inherited(fd):
    """Whether that descriptor came along, and what `get_inherited_fds` says."""
    with open(fd.detach(), 'rb') as file:
        return file.read(), len(forkserver.get_inherited_fds())


class Handed:
    """A descriptor that is handed to a child when it's pickled for one."""

    def __init__(self, fd):
        self.fd = fd

    def __reduce__(self):
        from procession import reduction
        return echo, (reduction.DupFd(self.fd),)


class ForkServerCase(helpers.Case):
    method = 'forkserver'

    def setUp(self):
        super().setUp()
        # A server of the test's own.
        SERVER._stop()
        self.addCleanup(SERVER._stop)

    def held(self, code=7, **options):
        """A process that runs until the writer is closed."""
        reader, writer = self.context.Pipe(False)
        self.addCleanup(writer.close)
        with reader:
            return self.start(wait_for, reader, code, **options), writer

    def stop_server(self):
        pid = SERVER._forkserver_pid
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(lambda: alive(pid) and os.kill(pid, signal.SIGCONT))
        wait_until(lambda: process_state(pid) == 'T')
        return pid

    def kill_server(self):
        os.kill(SERVER._forkserver_pid, signal.SIGKILL)
        wait_until(lambda: not SERVER._way.is_alive())


class ChildrenTest(ForkServerCase):
    def test_a_child_is_ours_and_the_servers(self):
        pid, kernels, parent, name, lives = self.ask(where)
        self.assertEqual((kernels, parent, name, lives),
                         (SERVER._forkserver_pid, os.getpid(), 'MainProcess', True))
        self.assertNotEqual(pid, kernels)

    def test_exit_statuses(self):
        for target, value, expected in ((sys.exit, 0, 0), (sys.exit, 77, 77), (exit_now, 3, 3),
                                        (raise_signal, signal.SIGKILL, -9), (raise_signal, signal.SIGTERM, -15)):
            with self.subTest(target=target, value=value):
                child = self.start(target, value)
                self.assertEqual(connection.wait([child.sentinel]), [child.sentinel])
                self.assertEqual(child.exitcode, expected)
                self.assertFalse(child.is_alive())

    def test_grandchildren_come_from_the_same_server(self):
        mine, theirs, code, server = self.ask(start_another, 'forkserver', daemon=False)
        self.assertEqual((server, mine[1], theirs[1]), (SERVER._forkserver_pid,) * 3)
        self.assertEqual((theirs[2], code), (mine[0], 0))

    def test_a_forked_process_uses_the_same_server(self):
        SERVER.ensure_running()
        reader, writer = self.context.Pipe(False)
        context = procession.get_context('fork')
        child = self.own(context.Process(target=helpers.answer, args=(writer, start_another, ('forkserver',))))
        child.start()
        mine, theirs, code, server = reader.recv()
        self.assertEqual((server, theirs[1], theirs[2], code), (SERVER._forkserver_pid,) * 2 + (child.pid, 0))

    def test_a_child_has_pythons_signals(self):
        # What a shell starts in the background ignores SIGINT, and so do its children.
        has_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.assertEqual(self.ask(handlers), (has_default, signal.SIG_DFL, set()))

    def test_objects_go_along_and_nothing_stays(self):
        self.ask(nothing)
        before = _core.census()['objects']
        lock, queue, value = self.context.Lock(), self.context.Queue(), self.context.Value('i', 0)
        for _ in range(5):
            self.start(use, lock, queue, value).join()
        self.assertEqual([queue.get() for _ in range(5)], [1, 2, 3, 4, 5])
        del lock, queue, value
        gc.collect()
        _core.reap()
        wait_until(lambda: (_core.reap(), _core.census()['objects'])[1] == before)

    def test_what_a_child_held_is_free_wherever_it_was_killed(self):
        choose = random.Random(SEED)
        print(f'SEED={SEED}', file=sys.stderr)
        self.ask(nothing)
        before = _core.census()
        for _ in range(40):
            lock, queue, value = self.context.Lock(), self.context.Queue(), self.context.Value('i', 0)
            child = self.process(use, lock, queue, value)
            child.start()
            time.sleep(choose.random() * 0.004)
            child.kill()
            child.join()
            self.assertIn(child.exitcode, (0, -signal.SIGKILL))
            child.close()
            del lock, queue, value, child
            gc.collect()
        wait_until(lambda: (_core.reap(), _core.census()['objects'])[1] == before['objects'])
        self.assertEqual(_core.census()['processes'], before['processes'])

    def test_no_descriptor_stays_after_many_starts(self):
        self.ask(nothing)
        gc.collect()
        server = SERVER._forkserver_pid

        def theirs():
            return len(os.listdir(f'/proc/{server}/fd'))
        # It may still have what the first child had.
        before, there = helpers.descriptors(), theirs()
        for _ in range(200):
            child = self.process(nothing)
            child.start()
            child.join()
            self.assertEqual(child.exitcode, 0)
            child.close()
        self.assertEqual(helpers.descriptors(), before)
        wait_until(lambda: theirs() <= there)
        with open(f'/proc/{server}/task/{server}/children') as children:
            # The one that waits to be asked for, if it's there already.
            self.assertLessEqual(len(children.read().split()), 1)

    def test_many_threads_start_at_once(self):
        codes = []

        def start(code):
            child = self.start(exit_now, code)
            child.join()
            codes.append(child.exitcode)
        threads = [threading.Thread(target=start, args=(code,)) for code in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(codes), list(range(20)))

    def test_descriptors_are_handed_over(self):
        reader, writer = os.pipe()
        os.write(writer, b'through')
        os.close(writer)
        self.assertEqual(self.ask(inherited, Handed(reader)), (b'through', 2))
        os.close(reader)
        self.assertIsNone(forkserver.get_inherited_fds())

    def test_more_descriptors_than_can_go(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        before = helpers.descriptors()
        with self.assertRaisesRegex(ValueError, 'descriptors.*the limit is 250'):
            self.start(nothing, [Handed(reader) for _ in range(260)])
        SERVER._stop()
        gc.collect()
        self.assertEqual(helpers.descriptors(), before)

    def test_a_child_by_hand(self):
        reader, writer = os.pipe()
        status, data = forkserver.connect_to_new_process([writer])
        os.close(writer)
        process = self.context.Process(target=exit_now, args=(23,))
        with open(data, 'wb') as file:
            from procession import reduction, spawn
            from procession.context import set_spawning_popen
            set_spawning_popen(self)
            try:
                reduction.dump(spawn.get_preparation_data('by hand'), file)
                reduction.dump(process, file)
            finally:
                set_spawning_popen(None)
        self.assertGreater(forkserver.read_signed(status), 0)
        # The child has the writer as long as it lives.
        self.assertEqual(os.read(reader, 1), b'')
        self.assertEqual(forkserver.read_signed(status), 23)
        self.assertEqual(os.read(status, 1), b'')
        for fd in (reader, status):
            os.close(fd)

    def give(self, *_):
        self.fail('nothing of the tree is in it')


class DeathTest(ForkServerCase):
    def waiting_child(self):
        """The process id of the child that the server has forked before anybody asks for it."""
        server = SERVER._forkserver_pid

        def children():
            with open(f'/proc/{server}/task/{server}/children') as file:
                return file.read().split()
        wait_until(lambda: len(children()) == 1 and process_state(children()[0]) == 'S')
        return int(children()[0])

    def test_a_child_may_be_killed_while_it_is_given_its_request(self):
        self.ask(os.getpid)
        choose = random.Random(SEED)
        print(f'SEED={SEED}', file=sys.stderr)
        before, starts = helpers.descriptors(), []
        for _ in range(60):
            pidfd = os.pidfd_open(self.waiting_child())
            killer = threading.Thread(target=kill_after, args=(choose.uniform(0, 1e-3), pidfd))
            killer.start()
            child = self.start(nothing)
            child.join()
            killer.join()
            starts.append(child.exitcode)
            child.close()
            # Whatever that one met, the next one has a child.
            self.ask(os.getpid)
        self.assertLessEqual(set(starts), {0, -signal.SIGKILL})
        self.assertEqual(helpers.descriptors(), before)

    def test_who_asks_again_may_find_no_server(self):
        ask = SERVER._start

        def in_vain(*_):
            SERVER._start = ask
            # As another thread, which has found it dead and is about to start one.
            SERVER._stop()
            raise EOFError
        self.addCleanup(SERVER.__dict__.pop, '_start', None)
        SERVER.ensure_running()
        SERVER._start = in_vain
        self.assertEqual(self.ask(echo, 5), 5)

    def test_a_killed_server_harms_no_child_and_comes_back(self):
        first, writer = self.held()
        second, _ = self.held()
        server = SERVER._forkserver_pid
        self.kill_server()
        self.assertTrue(first.is_alive() and second.is_alive())
        self.assertEqual(self.ask(echo, 5), 5)
        self.assertNotEqual(SERVER._forkserver_pid, server)
        self.assertEqual(process_state(server), 'X')
        second.kill()
        writer.close()
        first.join()
        second.join()
        # Linux tells it, from 6.15 on, once whoever inherited them has waited for them.
        self.assertIn(first.exitcode, (7, 255))
        self.assertIn(second.exitcode, (-9, 255))

    def test_the_status_is_exact_where_orphans_come_to_us(self):
        done = self.script('''
            import ctypes, os, procession, signal, sys
            from procession import forkserver
            def wait(reader):
                try:
                    reader.recv()
                except EOFError:
                    sys.exit(7)
            if __name__ == '__main__':
                PR_SET_CHILD_SUBREAPER = 36
                assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
                context = procession.get_context('forkserver')
                reader, writer = context.Pipe(False)
                children = [context.Process(target=wait, args=(reader,)) for _ in range(2)]
                for child in children:
                    child.start()
                os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
                forkserver._forkserver._stop()
                children[0].terminate()
                children[0].join()
                reader.close()
                writer.close()
                children[1].join()
                try:
                    # What the server had forked ahead has ended with it, and comes to us too.
                    while True:
                        os.waitpid(-1, 0)
                except ChildProcessError:
                    print(*(child.exitcode for child in children))
            ''')
        self.assertEqual((done.stdout, done.stderr), ('-15 7\n', ''))

    def test_signals_that_the_server_gets(self):
        self.assertEqual(self.ask(echo, 1), 1)
        server = SERVER._forkserver_pid
        os.kill(server, signal.SIGINT)
        self.assertEqual(self.ask(echo, 2), 2)
        self.assertEqual(SERVER._forkserver_pid, server)
        os.kill(server, signal.SIGTERM)
        wait_until(lambda: not SERVER._way.is_alive())
        self.assertEqual(self.ask(echo, 3), 3)

    def test_a_stopped_server_outlasts_no_timeout(self):
        child, writer = self.held()
        server = self.stop_server()
        writer.close()
        # The pidfd tells the end at once; how it ended is not known yet, so it isn't over for us.
        self.assertEqual(connection.wait([child.sentinel]), [child.sentinel])
        child.join(0.01)
        self.assertIsNone(child.exitcode)
        self.assertTrue(child.is_alive())
        os.kill(server, signal.SIGCONT)
        child.join()
        self.assertEqual(child.exitcode, 7)

    def test_ctrl_c_ends_a_start_that_the_server_keeps_waiting(self):
        self.ask(nothing)
        server = self.stop_server()
        before = _core.census()['processes']

        def interrupt(*_):
            raise KeyboardInterrupt
        child = self.process(nothing)
        with helpers.handling(signal.SIGALRM, interrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with self.assertRaises(KeyboardInterrupt):
                child.start()
        os.kill(server, signal.SIGCONT)
        # The child of that request finds nobody who tells it what to do, and ends without a word.
        self.assertEqual(self.ask(echo, 6), 6)
        wait_until(lambda: (_core.reap(), _core.census()['processes'])[1] == before)

    PROGRAM = '''
        import procession, os, sys, time
        from procession import forkserver
        def sleep(queue):
            queue.put(os.getpid())
            time.sleep(3600)
        if __name__ == '__main__':
            context = procession.get_context('forkserver')
            queue = context.Queue()
            for daemon in (True, True, False):
                context.Process(target=sleep, args=(queue,), daemon=daemon).start()
                print(queue.get(), end=' ', flush=True)
            print(forkserver._forkserver._forkserver_pid, flush=True)
            time.sleep(3600)
        '''

    def test_a_killed_parent_takes_daemons_along_and_the_server_goes_last(self):
        folder = self.write(self.folder(), {'program.py': self.PROGRAM})
        program = self.begin(folder / 'program.py')
        first, second, plain, server = map(int, program.stdout.readline().split())
        program.kill()
        program.wait()
        wait_until(lambda: not alive(first) and not alive(second))
        self.assertTrue(alive(plain) and alive(server))
        os.kill(plain, signal.SIGKILL)
        wait_until(lambda: not alive(server))

    def test_daemons_die_with_the_parent_although_the_server_is_gone(self):
        folder = self.write(self.folder(), {'program.py': self.PROGRAM})
        program = self.begin(folder / 'program.py')
        first, second, plain, server = map(int, program.stdout.readline().split())
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not alive(server))
        self.assertTrue(alive(first) and alive(second))
        program.kill()
        program.wait()
        wait_until(lambda: not alive(first) and not alive(second))
        self.assertTrue(alive(plain))
        os.kill(plain, signal.SIGKILL)

    def test_a_fork_that_fails_is_the_starters_error(self):
        done = self.script('''
            import procession, os, sys
            def refuse():
                raise OSError(11, 'no more processes')
            real = os.fork
            if __name__ == '__mp_main__':
                # In the server: the second fork fails, which nobody has asked for yet, and the third, as the system's own may.
                forks = []
                def fork():
                    forks.append(1)
                    return refuse() if len(forks) in (2, 3) else real()
                os.fork = fork
            if __name__ == '__main__':
                from procession import _core
                context = procession.get_context('forkserver')
                lock = context.Lock()
                for _ in range(3):
                    child = context.Process(target=lock.acquire)
                    try:
                        child.start()
                    except OSError as e:
                        print(type(e).__name__, e.errno, e)
                        continue
                    child.join()
                    print(child.exitcode)
                    lock.release()
                _core.reap()
                # Ours, and the server's.
                print(_core.census()['processes'])
            ''')
        self.assertEqual(done.stderr, '')
        self.assertRegex(done.stdout, r'^0\nBlockingIOError 11 .*fork: .*\n0\n2\n$')


class SocketTest(ForkServerCase):
    """What comes by the socket that isn't a request."""

    def packet_sockets(self):
        """Copies of all that this process has, by what tells them apart. Ends of pipes are such, too."""
        found = {}
        for fd, what in helpers.descriptors().items():
            if what.startswith('socket:'):
                copy = socket.socket(fileno=os.dup(fd))
                if copy.family == socket.AF_UNIX and copy.type == socket.SOCK_SEQPACKET:
                    self.addCleanup(copy.close)
                    found[what] = copy
                else:
                    copy.close()
        return found

    def way(self):
        """A socket to a new server, beside the one that the package has."""
        SERVER._stop()
        before = self.packet_sockets()
        self.ask(nothing)
        [way] = [each for what, each in self.packet_sockets().items() if what not in before]
        return way

    def test_garbage_changes_nothing(self):
        way = self.way()
        server, choose = SERVER._forkserver_pid, random.Random(SEED)
        print(f'SEED={SEED}', file=sys.stderr)

        def count():
            return len(os.listdir(f'/proc/{server}/fd'))
        before = count()
        for length in (*range(1, 100), 1000, 20_000):
            way.send(choose.randbytes(length))
            # A request's head, with a key that isn't the server's.
            fds = [0] * choose.randrange(5)
            socket.send_fds(way, [b'prcfork1' + choose.randbytes(length)], fds)
        wait_until(lambda: self.ask(echo, 2) == 2)
        self.assertEqual(SERVER._forkserver_pid, server)
        wait_until(lambda: count() <= before)
        self.assertTrue(alive(server))

    def test_the_key_is_on_no_command_line(self):
        # An answer comes after its exec.
        self.ask(nothing)
        with open(f'/proc/{SERVER._forkserver_pid}/cmdline', 'rb') as file:
            line = file.read().split(b'\0')
        self.assertIn(b'-c', line)
        self.assertNotRegex(line[line.index(b'-c') + 1], rb'[0-9a-f]{64}|authkey')

    def test_a_start_waits_while_others_fill_the_socket(self):
        way = self.way()
        self.stop_server()
        way.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                way.send(b'x' * 10_000)
        threading.Timer(0.1, os.kill, (SERVER._forkserver_pid, signal.SIGCONT)).start()
        self.assertEqual(self.ask(echo, 4), 4)


class PreloadTest(ForkServerCase):
    def program(self, source, *flags, **files):
        folder = self.write(self.folder(), {'program.py': source, **{f'{name}.py': text for name, text in files.items()}})
        return self.python(*flags, folder / 'program.py', 'an argument')

    def test_main_is_loaded_once_with_its_arguments(self):
        done = self.program('''
            import os, procession, sys
            print('loaded', __name__, sys.argv[1:], os.path.basename(sys.path[0]) != '', flush=True)
            def say(server):
                print(os.getppid() == server, sys.argv[1:], sys.modules['__main__'] is sys.modules['__mp_main__'])
            if __name__ == '__main__':
                context = procession.get_context('forkserver')
                for _ in range(2):
                    from procession import forkserver
                    forkserver.ensure_running()
                    child = context.Process(target=say, args=(forkserver._forkserver._forkserver_pid,))
                    child.start()
                    child.join()
            ''')
        self.assertEqual((done.stderr, done.stdout.splitlines()), ('', [
            "loaded __main__ ['an argument'] True", "loaded __mp_main__ ['an argument'] True",
            "True ['an argument'] True", "True ['an argument'] True"]))

    def test_a_program_by_module_name(self):
        folder = self.write(self.folder(), {'program.py': '''
            import procession
            print('loaded', __name__, flush=True)
            def say():
                print('said')
            if __name__ == '__main__':
                for _ in range(2):
                    child = procession.get_context('forkserver').Process(target=say)
                    child.start()
                    child.join()
            '''})
        done = self.python('-m', 'program', cwd=folder)
        self.assertEqual((done.stderr, done.stdout), ('', 'loaded __main__\nloaded __mp_main__\nsaid\nsaid\n'))

    def test_modules_are_loaded_before_the_fork_and_their_locks_are_one(self):
        done = self.program('''
            import procession
            import given
            def take(name):
                print(name, given.lock.acquire(block=False), given.where == __import__('os').getpid(), flush=True)
            if __name__ == '__main__':
                context = procession.get_context('forkserver')
                context.set_forkserver_preload(['given'])
                for name in ('first', 'second'):
                    child = context.Process(target=take, args=(name,))
                    child.start()
                    child.join()
            ''', given='''
            import os
            import procession
            lock = procession.get_context('forkserver').Lock()
            where = os.getpid()
            ''')
        # The first one leaves normally, and the lock held.
        self.assertEqual((done.stderr, done.stdout), ('', 'first True False\nsecond False False\n'))

    FAILING = '''
        import procession, sys
        if __name__ == '__main__':
            context = procession.get_context('forkserver')
            context.set_forkserver_preload(['not_there', 'json'], on_error=%r)
            child = context.Process(target=print, args=('ran',))
            try:
                child.start()
            except EOFError as e:
                print('EOFError:', e)
            else:
                child.join()
        '''

    def test_a_module_that_cant_be_loaded(self):
        done = self.program(self.FAILING % 'ignore')
        self.assertEqual((done.stderr, done.stdout), ('', 'ran\n'))
        done = self.program(self.FAILING % 'warn', '-W', 'always::ImportWarning')
        self.assertRegex(done.stderr, "ImportWarning: the fork server cannot preload 'not_there': ModuleNotFoundError")
        self.assertEqual(done.stdout, 'ran\n')
        done = self.program(self.FAILING % 'fail')
        self.assertRegex(done.stderr, "ModuleNotFoundError: No module named 'not_there'")
        self.assertEqual(done.stdout, 'EOFError: the fork server has ended\n')

    def test_a_main_that_cant_be_loaded_is_the_childs_error(self):
        done = self.program('''
            import procession, sys
            if __name__ != '__main__':
                raise ValueError('only once')
            if __name__ == '__main__':
                child = procession.get_context('forkserver').Process(target=print, args=('ran',))
                child.start()
                child.join()
                print(child.exitcode)
            ''')
        self.assertEqual(done.stdout, '1\n')
        self.assertEqual(done.stderr.count('ValueError: only once'), 1)

    def test_arguments(self):
        with self.assertRaisesRegex(TypeError, 'list of strings'):
            self.context.set_forkserver_preload([1])
        with self.assertRaisesRegex(ValueError, "on_error.*'nothing'"):
            self.context.set_forkserver_preload(['os'], on_error='nothing')

    def test_what_main_prints_is_printed_once(self):
        done = self.program('''
            import procession
            print('top of', __name__, end='.')
            if __name__ == '__main__':
                for _ in range(2):
                    child = procession.get_context('forkserver').Process(target=print, args=('ran',))
                    child.start()
                    child.join()
            ''')
        self.assertEqual((done.stderr, done.stdout), ('', 'top of __main__.top of __mp_main__.ran\nran\n'))

    def test_closed_standard_streams(self):
        for closed in ((0,), (1,), (2,), (0, 1, 2)):
            with self.subTest(closed=closed):
                folder = self.write(self.folder(), {'program.py': f'''
                    import os, procession, sys
                    def check(path):
                        with open(path, 'a') as file:
                            file.write('ran ')
                    if __name__ == '__main__':
                        for fd in {closed}:
                            os.close(fd)
                        child = procession.get_context('forkserver').Process(target=check, args=(sys.argv[1],))
                        child.start()
                        child.join()
                        os._exit(child.exitcode)
                    '''})
                done = self.python(folder / 'program.py', folder / 'said')
                self.assertEqual((done.returncode, (folder / 'said').read_text()), (0, 'ran '))


if __name__ == '__main__':
    unittest.main()
