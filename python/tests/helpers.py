"""What the tests of processes share: a case that watches for hangs and for what is left behind, and whole programs."""

import contextlib
import faulthandler
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import warnings

import procession
from procession import forkserver

#: Seconds after which a test that hangs shows its stacks. No test asserts that something is quick.
WATCHDOG = 120

#: What is known of how a child ended whose status somebody else has taken: the kernel tells since 6.15.
TAKEN = (lambda code: code) if tuple(map(int, re.findall(r'\d+', os.uname().release)[:2])) >= (6, 15) else (lambda code: 255)

#: Where the package under test lies.
HOME = str(pathlib.Path(procession.__file__).parent.parent)


def process_state(pid):
    """The letter of a process' state; X if there is none."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0]
    except OSError:
        return 'X'


def alive(pid):
    """Whether a process runs; a zombie doesn't."""
    return process_state(pid) not in 'ZX'


def wait_until(condition):
    """Waits for as long as it takes; the watchdog ends what never comes."""
    while not condition():
        time.sleep(0.01)


def threads(name):
    """How many threads of that name this process has. (All of them would be more than run: one that has returned is ended later.)"""
    found = 0
    for thread in os.listdir('/proc/self/task'):
        with contextlib.suppress(OSError), open(f'/proc/self/task/{thread}/comm') as file:
            found += file.read().strip() == name
    return found


def descriptors():
    """The open descriptors of this process, and what they are."""
    opened = {}
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            opened[int(name)] = os.readlink(f'/proc/self/fd/{name}')
    # The one that listed them is gone.
    return {fd: what for fd, what in opened.items() if not what.startswith('/proc/')}


@contextlib.contextmanager
def handling(number, handler):
    """Has a signal handled so, for a time."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def hush(function, *args):
    """Calls a function in a child whose end nobody wants to read of."""
    sys.stderr = open(os.devnull, 'w')
    return function(*args)


def answer(writer, function, args):
    """Sends what a function returns."""
    writer.send(function(*args))
    writer.close()


class Case(unittest.TestCase):
    """Watches for hangs; ends what a test has started."""
    #: The start method; mixins are run with each.
    method = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.method == 'forkserver':
            # A server that has the class loaded, as it would have a program's main module.
            procession.set_forkserver_preload(['__main__', cls.__module__])
            # Other classes count who is in the tree.
            cls.addClassCleanup(forkserver._forkserver._stop)

    def setUp(self):
        self.go_on()
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        self.enterContext(warnings.catch_warnings())
        # The watchdog is a thread, and 3.12 warns of forks among threads.
        warnings.filterwarnings('ignore', '.*use of fork', DeprecationWarning)
        self.context = procession.get_context(self.method)

    @staticmethod
    def go_on():
        """The watchdog begins again: for what is long on a loaded machine, and did a part of it."""
        faulthandler.dump_traceback_later(WATCHDOG, exit=True)

    def process(self, target=None, *args, **options):
        """A process that isn't started; it doesn't outlive the test."""
        options.setdefault('daemon', True)
        return self.own(self.context.Process(target=target, args=args, **options))

    def own(self, process):
        self.addCleanup(self.end, process)
        return process

    def start(self, target, *args, **options):
        process = self.process(target, *args, **options)
        process.start()
        return process

    def end(self, process):
        if not process._closed and process._popen is not None:
            process.kill()
            process.join()
            process.close()

    def ask(self, function, *args, **options):
        """What a function returns in a child."""
        reader, writer = self.context.Pipe(False)
        with reader:
            process = self.start(answer, writer, function, args, **options)
            writer.close()
            value = reader.recv()
        process.join()
        self.assertEqual(process.exitcode, 0)
        process.close()
        return value

    def folder(self):
        """A fresh folder."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return pathlib.Path(folder.name)

    def write(self, folder, files):
        for name, source in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return folder

    def python(self, *command, input='', **options):
        """Runs the interpreter to its end, with the package on its path."""
        program = self.begin(*command, **options)
        try:
            out, err = program.communicate(input, timeout=WATCHDOG - 20)
        except subprocess.TimeoutExpired:
            # It shows its stacks and dies.
            program.send_signal(signal.SIGABRT)
            self.fail('the program hangs: ' + '\n'.join(program.communicate()))
        return subprocess.CompletedProcess(command, program.returncode, out, err)

    def begin(self, *command, **options):
        """Starts the interpreter, with the package on its path; all that it starts ends with the test."""
        environment = {**os.environ, 'PYTHONPATH': HOME, 'PYTHONFAULTHANDLER': '1', **options.pop('env', {})}
        options.setdefault('cwd', self.folder())
        program = subprocess.Popen(
            [sys.executable, *map(str, command)], env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        self.addCleanup(self.finish, program)
        return program

    def finish(self, program):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        for stream in (program.stdin, program.stdout, program.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def script(self, source, *args, **options):
        """Runs a program of this package's with the start method as its first argument."""
        folder = self.write(self.folder(), {'program.py': source})
        return self.python(folder / 'program.py', self.method or 'fork', *args, **options)
