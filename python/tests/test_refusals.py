"""What a child can't be given is refused by `start()`, before anything is started, with an error that says what to do."""

import os
import pathlib
import sys
import unittest
import zipfile

import helpers
import procession
from procession import _core, spawn


def nothing(*args):
    pass


def unnamed():
    """Things that have no name at the top level of a module."""
    def local():
        pass

    class Local:
        def method(self):
            pass

    return {'local': local, 'Local': Local().method, '<lambda>': lambda: None}


class Reducer(procession.reducer.AbstractReducer):
    """A program's own: it pickles what the package's can't."""

    def dump(self, obj, file, protocol=None):
        if isinstance(obj, procession.process.BaseProcess):
            obj._target = nothing
        procession.reduction.dump(obj, file, protocol)


#: Starts things from a main module and says of each how that went.
ATTEMPTS = '''
import copyreg, enum, functools, os, sys
import procession
from procession import reduction

def f():
    pass

class C:
    def m(self):
        pass

class E(enum.Enum):
    A = 1

class ByValue:
    """As libraries do that pickle code itself: the pickle names nothing that main has."""
    def __reduce__(self):
        return eval, ('lambda: None',)

    def __call__(self):
        pass

class Registered:
    pass

class Meta(type):
    pass

class Rebuilt(metaclass=Meta):
    pass

reduction.register(Registered, lambda it: (functools.partial, (int,)))
copyreg.pickle(Meta, lambda cls: (eval, ('int',)))

def attempt(name, target, *args):
    child = context.Process(target=target, args=args)
    try:
        child.start()
    except Exception as error:
        said = str(error) + ''.join(error.__notes__)
        says = all(word in said for word in ('was not started', "'fork'", 'module', repr(name)))
        print(name, 'refused', type(error).__name__, says, child.is_alive(), child.exitcode)
    else:
        child.join()
        print(name, child.exitcode)

def children():
    with open('/proc/self/task/%d/children' % os.getpid()) as file:
        return file.read()

if __name__ == '__main__':
    context = procession.get_context(sys.argv[-1])
    attempt('os', os.getpid)
    before = children()
    attempt('f', f)
    attempt('f', callable, [f])
    attempt('f', functools.partial(f))
    attempt('C', C().m)
    attempt('E', isinstance, E.A, int)
    attempt('ByValue', ByValue())
    attempt('Registered', callable, Registered())
    attempt('Rebuilt', isinstance, 1, Rebuilt)
    attempt('__main__', len, '__main__')
    print(children() == before, procession.active_children())
'''

NAMED = ['f', 'f', 'f', 'C', 'E']
OTHERS = ['ByValue 0', 'Registered 0', 'Rebuilt 0', '__main__ 0', 'True []']
WORKS = ['os 0'] + [f'{name} 0' for name in NAMED] + OTHERS
#: Where children don't get the main module.
REFUSED = ['os 0'] + [f'{name} refused PicklingError True False None' for name in NAMED] + OTHERS


class Refusals:
    def attempted(self, expected, *command, **options):
        done = self.python(*command, self.method, **options)
        self.assertEqual((done.stdout.splitlines(), done.stderr), (expected, ''))

    def test_main_of_a_file_or_a_module(self):
        folder = self.write(self.folder(), {'program.py': ATTEMPTS, 'package/__init__.py': '',
                                            'package/inner.py': ATTEMPTS, 'noend': ATTEMPTS})
        self.attempted(WORKS, folder / 'program.py')
        self.attempted(WORKS, 'noend', cwd=folder)
        self.attempted(WORKS, '-m', 'package.inner', cwd=folder)
        self.attempted(WORKS, '-m', 'procession', folder / 'program.py')

    def test_main_that_was_typed_in(self):
        folder = self.write(self.folder(), {'program.py': ATTEMPTS})
        self.attempted(REFUSED, '-c', ATTEMPTS)
        self.attempted(REFUSED, '-', input=ATTEMPTS)
        # An interpreter that asks; its questions go to stderr.
        done = self.python('-iqc', '', self.method, input=f'exec(open({str(folder / "program.py")!r}).read())\n')
        self.assertEqual(done.stdout.splitlines(), REFUSED)

    def test_a_pools_function_of_a_main_that_was_typed_in(self):
        source = '''if True:
            import procession, sys
            def f(*args):
                pass
            class C:
                def __new__(cls, *args):
                    pass
            if __name__ == '__main__':
                with procession.get_context(sys.argv[-1]).Pool(1) as pool:
                    for function in f, C:
                        for submit in (pool.map, pool.map_async, pool.starmap, pool.imap, pool.imap_unordered, pool.apply,
                                       pool.apply_async):
                            try:
                                submit(function, [()])
                            except Exception as error:
                                print(type(error).__name__, all(word in str(error) for word in (
                                    "'fork'", 'module', repr(function.__name__))))
                            else:
                                print('works')
                    print(pool.map(abs, [-1]), len(pool._cache))
            '''
        self.attempted(['PicklingError True'] * 14 + ['[1] 0'], '-c', source)
        folder = self.write(self.folder(), {'program.py': source})
        self.attempted(['works'] * 14 + ['[1] 0'], folder / 'program.py')

    def test_main_of_a_folder_a_package_or_an_archive(self):
        folder = self.write(self.folder(), {'package/__init__.py': '', 'package/__main__.py': ATTEMPTS})
        with zipfile.ZipFile(folder / 'archive.pyz', 'w') as archive:
            archive.writestr('__main__.py', ATTEMPTS)
        self.attempted(REFUSED, folder / 'package')
        self.attempted(REFUSED, folder / 'archive.pyz')
        self.attempted(REFUSED, '-m', 'package', cwd=folder)
        self.attempted(REFUSED, '-m', 'procession', folder / 'package')

    def test_main_whose_file_is_gone(self):
        folder = self.write(self.folder(), {'program.py': f'import os\nos.remove(__file__)\n{ATTEMPTS}'})
        self.attempted(REFUSED, folder / 'program.py')

    def test_a_folder_that_is_gone(self):
        gone = self.folder() / 'gone'
        gone.mkdir()
        done = self.script('''
            import os, procession, sys
            if __name__ == '__main__':
                os.rmdir(os.getcwd())
                child = procession.get_context(sys.argv[1]).Process(target=len, args=('',))
                child.start()
                child.join()
                print(child.exitcode)
            ''', cwd=gone)
        self.assertEqual((done.stdout, done.stderr), ('0\n', ''))

    def refused(self, child, *words):
        """Tries to start a process that can't be; the error's text and notes."""
        children, counts, descriptors = procession.active_children(), _core.census(), helpers.descriptors()
        with self.assertRaises(Exception) as caught:
            child.start()
        said = '\n'.join([str(caught.exception), *getattr(caught.exception, '__notes__', [])])
        for word in words:
            self.assertIn(word, said)
        self.assertEqual((child.is_alive(), child.exitcode, child.pid), (False, None, None))
        self.assertEqual((procession.active_children(), helpers.descriptors()), (children, descriptors))
        self.assertEqual(_core.census()['processes'], counts['processes'])
        return caught.exception

    def test_what_has_no_name(self):
        for name, target in unnamed().items():
            with self.subTest(name=name):
                child = self.context.Process(target=target, name='Unlucky')
                self.refused(child, name, "'Unlucky'", 'was not started', 'top level of a module', "'fork'")
        with open(os.devnull) as file:
            error = self.refused(self.process(nothing, file), 'TextIOWrapper', 'was not started')
        self.assertIsInstance(error, TypeError)

    def test_a_process_that_was_started(self):
        other = self.start(nothing)
        error = self.refused(self.process(nothing, other), 'belongs to the process that started it')
        self.assertIsInstance(error, TypeError)

    def test_a_reducer_of_the_programs_own(self):
        before = self.context.reducer
        self.context.reducer = Reducer()
        self.addCleanup(setattr, self.context, 'reducer', before)
        self.assertIsInstance(self.context.reducer, Reducer)
        child = self.start(lambda: None)
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_executables(self):
        self.addCleanup(spawn.set_executable, spawn.get_executable())
        for kind in (str, os.fsencode, pathlib.Path):
            self.context.set_executable(kind(sys.executable))
            self.assertEqual(spawn.get_executable(), os.fsencode(sys.executable))
            child = self.start(nothing)
            child.join()
            self.assertEqual(child.exitcode, 0)
        self.assertRaises(TypeError, self.context.set_executable, 3)


class Guards:
    """Main modules whose children would run what starts them."""

    #: What a child prints that comes to start one itself.
    BOOTSTRAPPING = 'before the\n        current process has finished its bootstrapping phase.'

    def test_a_start_without_a_guard(self):
        folder = self.write(self.folder(), {'program.py': '''\
            import procession, sys
            child = procession.get_context(sys.argv[-1]).Process(target=print, args=('child',))
            print(child.name, flush=True)
            child.start()
            print('never')
            '''})
        for command in ([folder / 'program.py'], ['-m', 'program'], ['-m', 'procession', folder / 'program.py']):
            done = self.python(*command, self.method, cwd=folder)
            self.assertEqual((done.returncode, done.stdout.count('Process-1'), 'never' in done.stdout), (1, 1, False))
            self.assertIn('RuntimeError: line 4 of', done.stderr)
            self.assertIn("program.py starts a process, and the process would come to that line too", done.stderr)
            self.assertIn("under `if __name__ == '__main__':`", done.stderr)

    def test_a_pool_without_a_guard(self):
        done = self.script('''
            import procession, sys
            with procession.get_context(sys.argv[1]).Pool(2) as pool:
                print(pool.map(abs, [-1]))
            ''')
        self.assertEqual((done.returncode, done.stdout), (1, ''))
        self.assertIn('RuntimeError: line 3 of', done.stderr)

    def test_a_start_in_a_function(self):
        """What is not to be seen from outside: the child says it, and the parent doesn't hang."""
        done = self.script('''
            import procession, sys
            def start():
                # More than fits into a pipe.
                child = procession.get_context(sys.argv[1]).Process(target=len, args=(bytes(1 << 20),))
                child.start()
                child.join()
                print(child.exitcode)
            start()
            ''')
        self.assertEqual((done.returncode, done.stdout), (0, '1\n'))
        self.assertIn('RuntimeError:', done.stderr)
        self.assertIn(self.BOOTSTRAPPING, done.stderr)
        self.assertIn('"Safe importing of main module"', done.stderr)

    def test_guards_of_all_kinds(self):
        """Each of these starts one process, whose exit code it prints, and the child comes to its end."""
        guards = {
            'if': "if __name__ == '__main__':\n    {}",
            'if not': "if __name__ != '__main__':\n    pass\nelse:\n    {}",
            'one line': "if __name__ == '__main__': {}",
            'and': "__name__ == '__main__' and {}",
            'conditional': "{} if __name__ == '__main__' else None",
            'while': "while __name__ == '__main__':\n    {}\n    break",
            'for': "for _ in range(__name__ == '__main__'):\n    {}",
            'match': "match __name__:\n    case '__main__':\n        {}",
            'try': "try:\n    {}\nexcept RuntimeError:\n    pass",
            'function': "def main():\n    if __name__ == '__main__':\n        {}\nmain()",
            'another module': "import other\nother.start(child) if __name__ == '__main__' else None",
        }
        for name, guard in guards.items():
            with self.subTest(guard=name):
                folder = self.write(self.folder(), {'other.py': 'def start(child):\n    child.start()\n'})
                source = (f'import procession, sys\nchild = procession.get_context({self.method!r}).Process('
                          f"target=print, args=('child',))\n{guard.format('child.start()')}\n"
                          "if child.pid:\n    child.join()\n    print(child.exitcode)\n")
                done = self.python(folder / 'program.py', cwd=self.write(folder, {'program.py': source}))
                self.assertEqual((done.stdout, done.stderr), ('child\n0\n', ''))

    def test_main_modules_that_children_do_not_run(self):
        source = f'''\
import procession
child = procession.get_context({self.method!r}).Process(target=print, args=('child',))
child.start()
child.join()
'''
        folder = self.write(self.folder(), {'package/__init__.py': '', 'package/__main__.py': source})
        for command, options in ((['-c', source], {}), (['-'], {'input': source}), ([folder / 'package'], {}),
                                 (['-m', 'package'], {'cwd': folder})):
            done = self.python(*command, **options)
            self.assertEqual((done.stdout, done.stderr), ('child\n', ''))


class Frozen:
    def test_a_frozen_program(self):
        """A program that is its own interpreter: its children are told what to do by its command line."""
        folder = self.write(self.folder(), {'program.py': f'''\
            #!{sys.executable}
            import sys
            sys.frozen, sys.executable = True, __file__
            import procession
            def work(answer):
                print(answer, procession.current_process().name, sys.argv[1:], flush=True)
            if __name__ == '__main__':
                procession.freeze_support()
                print('main', flush=True)
                child = procession.get_context({self.method!r}).Process(target=work, args=('child',), name='Frozen')
                child.start()
                child.join()
                print(child.exitcode)
            '''})
        (folder / 'program.py').chmod(0o755)
        done = self.python(folder / 'program.py', 'argument')
        self.assertEqual((done.stdout, done.stderr), ("main\nchild Frozen ['argument']\n0\n", ''))


class SpawnRefusalsTest(Refusals, helpers.Case):
    method = 'spawn'

    def test_no_executable(self):
        self.addCleanup(spawn.set_executable, spawn.get_executable())
        for executable in (None, '', b''):
            spawn.set_executable(executable)
            self.refused(self.process(nothing), 'no interpreter to start', 'set_executable()')


class ForkServerRefusalsTest(Refusals, helpers.Case):
    method = 'forkserver'


class SpawnGuardsTest(Guards, helpers.Case):
    method = 'spawn'


class ForkServerGuardsTest(Guards, helpers.Case):
    method = 'forkserver'


class SpawnFrozenTest(Frozen, helpers.Case):
    method = 'spawn'


class ForkServerFrozenTest(Frozen, helpers.Case):
    method = 'forkserver'


class ForkRefusesNothingTest(helpers.Case):
    method = 'fork'

    def test_what_has_no_name(self):
        for target in unnamed().values():
            child = self.start(target)
            child.join()
            self.assertEqual(child.exitcode, 0)

    def test_main_that_was_typed_in(self):
        for command in (['-c', ATTEMPTS], ['-']):
            done = self.python(*command, 'fork', input=ATTEMPTS)
            self.assertEqual((done.stdout.splitlines(), done.stderr), (WORKS, ''))


if __name__ == '__main__':
    unittest.main()
