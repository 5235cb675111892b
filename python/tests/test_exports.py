"""The package has the standard library's names, with signatures that take what the standard's take."""

import importlib
import inspect
import multiprocessing
import os
import pathlib
import pkgutil
import subprocess
import sys
import types
import unittest

import procession

#: Seconds after which a child that hangs is ended.
WATCHDOG = 120

PACKAGE = pathlib.Path(procession.__file__).parent

#: The exceptions that both packages share, so that `except multiprocessing.TimeoutError` catches either's.
SHARED = (multiprocessing.ProcessError, multiprocessing.BufferTooShort, multiprocessing.AuthenticationError,
          multiprocessing.TimeoutError)

#: Names that we export and the running interpreter doesn't: additions of newer ones.
NEWER = {'util': {'warn'}}

#: Helpers of the standard's own implementation, which have no meaning outside it: nobody imports them.
INTERNAL = {
    'managers': {'Array', 'BaseListProxy', 'BasePoolProxy', 'ProcessLocalSet', 'SharedMemoryServer', 'State', 'Value',
                 'rebuild_as_list', 'reduce_array'},
}

#: Modules whose private names programs and libraries use too.
PRIVATE = ('process', 'context', 'spawn', 'util', 'popen_fork', 'popen_spawn_posix', 'reduction')

#: Private names that are the standard's own affair, and what its modules happen to import.
THEIR_OWN = {'spawn.get_start_method', 'spawn.set_start_method', 'util._platform_supports_abstract_sockets'}

#: Signatures that differ on purpose.
DIFFERENT = {
    'spawn.spawn_main': "the child's first call, which our own parent writes: a token in place of the tracker",
    'forkserver.main': "the server's first call, which our own parent writes: a socket without a name, and the rest by a pipe",
    'pool.ApplyResult': 'only a pool makes results; ours are compiled',
    'pool.AsyncResult': 'only a pool makes results; ours are compiled',
    'pool.MapResult': 'only a pool makes results; ours are compiled',
    'pool.IMapIterator': 'only a pool makes results; ours are compiled',
    'pool.IMapUnorderedIterator': 'only a pool makes results; ours are compiled',
}

#: Constants of what isn't built: the first two are of authentication.
UNUSED = {'connection.MESSAGE_LENGTH', 'connection.CHALLENGE'}

#: Optional parameters that ours have besides the standard's.
ADDED = {
    'shared_memory.SharedMemory': {'track'},
    'connection.deliver_challenge': {'digest_name'},
    **dict.fromkeys(('set_forkserver_preload', 'context.BaseContext.set_forkserver_preload',
                     'forkserver.set_forkserver_preload', 'forkserver.ForkServer.set_forkserver_preload'), {'on_error'}),
}

#: Compiled classes whose constructors show inspect no signature.
COMPILED = {'synchronize.Lock', 'synchronize.RLock', 'synchronize.Semaphore', 'synchronize.BoundedSemaphore',
            'synchronize.Event', 'connection.Connection', 'sharedctypes.SynchronizedBase', 'sharedctypes.Synchronized',
            'sharedctypes.SynchronizedArray', 'sharedctypes.SynchronizedString'}

#: What isn't built yet: the words that its error must have, and how a program comes to use it.
UNBUILT = {
    'SyncManager': lambda ctx: ctx.Manager(),
}


def modules_of(package):
    """A package's submodules that can be imported on this system, by their names below the package's."""
    prefix = package.__name__ + '.'
    for found in pkgutil.walk_packages(package.__path__, prefix):
        name = found.name.removeprefix(prefix)
        # The one is for another operating system, the other for `python -m`.
        if name not in ('popen_spawn_win32', '__main__'):
            yield name, importlib.import_module(found.name)


STANDARD = dict(modules_of(multiprocessing))


def ours(name):
    return importlib.import_module(f'procession.{name}')


def our_modules():
    """All modules of the package that this system has, those without a counterpart too."""
    return dict(modules_of(procession)).values()


def is_unbuilt(value):
    return (value.__doc__ or '') in ('Not built yet: making one raises an error.',
                                     'Not built yet: calling it raises an error.')


def is_code(value):
    return inspect.isclass(value) or inspect.isroutine(value)


def public(name, module):
    """The classes and functions of a standard module that a program may use: what it exports, and what it defines."""
    for key, value in vars(module).items():
        is_own = getattr(value, '__module__', None) == module.__name__ and not key.startswith('_')
        if is_code(value) and (is_own or key in module.__all__) and key not in INTERNAL.get(name, ()):
            yield key, value


def signature(value):
    try:
        return inspect.signature(value)
    except ValueError:
        return None


def without_self(found):
    """The signature that a method's caller sees: a compiled method's `self` has no name."""
    return found and found.replace(parameters=list(found.parameters.values())[1:])


def is_variadic(found):
    kinds = [parameter.kind for parameter in found.parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


def differences(standard, our, added=()):
    """What a call may say to the standard's and ours would take otherwise."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [p.name for p in our.parameters.values() if p.kind in positional]
    for place, wanted in enumerate(standard.parameters.values()):
        found = our.parameters.get(wanted.name)
        if wanted.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            # Such a parameter's name is nobody's affair.
            if not any(p.kind == wanted.kind for p in our.parameters.values()):
                yield f'no {wanted}'
        elif found is None:
            yield f'no {wanted.name}'
        elif found.kind != wanted.kind:
            yield f'{wanted.name} is {found.kind.description}, not {wanted.kind.description}'
        elif found.kind in positional and places[place:place + 1] != [wanted.name]:
            yield f'{wanted.name} is in another place'
        elif found.default != wanted.default:
            yield f'{found} in place of {wanted}'
    kinds = {p.kind for p in standard.parameters.values()}
    for name, found in our.parameters.items():
        is_known = name in standard.parameters or name in added or found.kind in kinds - set(positional)
        is_optional = found.default is not found.empty or found.kind.name.startswith('VAR_')
        if not is_known or not (is_optional or name in standard.parameters):
            yield f'{found} besides'


class NamesTest(unittest.TestCase):

    def test_every_module_can_be_imported(self):
        self.assertGreater(len(STANDARD), 20)
        for name in STANDARD:
            with self.subTest(name):
                self.assertEqual(ours(name).__name__, f'procession.{name}')

    def test_all(self):
        pairs = [('', multiprocessing, procession)] + [(name, STANDARD[name], ours(name)) for name in STANDARD]
        for name, standard, our in pairs:
            with self.subTest(name):
                more = set(our.__all__) - set(standard.__all__)
                self.assertEqual(set(standard.__all__) - set(our.__all__), set())
                self.assertLessEqual(more, NEWER.get(name, set()))
                self.assertEqual(len(our.__all__), len(set(our.__all__)))

    def test_what_all_names_is_there(self):
        for module in [procession, *our_modules()]:
            for name in module.__all__:
                with self.subTest(module=module.__name__, name=name):
                    getattr(module, name)

    def test_public_names_beyond_all(self):
        for name, module in STANDARD.items():
            lacking = [key for key, _ in public(name, module) if not hasattr(ours(name), key)]
            self.assertEqual(lacking, [], name)
        for name in set(vars(multiprocessing)) - {'__file__'}:
            self.assertTrue(hasattr(procession, name) or isinstance(vars(multiprocessing)[name], types.ModuleType),
                            name)

    def test_constants(self):
        for name, module in STANDARD.items():
            for key, value in vars(module).items():
                is_constant = key.isupper() and isinstance(value, (int, str, bytes))
                if is_constant and hasattr(ours(name), key) and f'{name}.{key}' not in UNUSED:
                    with self.subTest(module=name, name=key):
                        self.assertEqual(getattr(ours(name), key), value)

    def test_internal_names_are_not_ours(self):
        """The list has nothing that has been built meanwhile."""
        for name, keys in INTERNAL.items():
            self.assertEqual({key for key in keys if hasattr(ours(name), key)}, set(), name)

    def test_modules_that_classes_say_they_are_from(self):
        for name, module in STANDARD.items():
            for key, value in public(name, module):
                is_theirs = inspect.isclass(value) and value.__module__.startswith('multiprocessing')
                if not is_theirs or value in SHARED:
                    continue
                with self.subTest(module=name, name=key):
                    expected = value.__module__.replace('multiprocessing', 'procession', 1)
                    self.assertEqual(getattr(ours(name), key).__module__, expected)


class PrivateNamesTest(unittest.TestCase):
    """What subclasses and debuggers use, and what libraries built on the package reach for."""

    def lacking(self, label, standard, our):
        names = {name for name, value in vars(standard).items()
                 if not name.startswith('__') and not isinstance(value, types.ModuleType)}
        return {f'{label}.{name}' for name in names if not hasattr(our, name)} - THEIR_OWN

    def test_modules_and_classes(self):
        for name in PRIVATE:
            standard, our = STANDARD[name], ours(name)
            self.assertEqual(self.lacking(name, standard, our), set())
            for key, cls in vars(standard).items():
                if inspect.isclass(cls) and cls.__module__ == standard.__name__ and hasattr(our, key):
                    self.assertEqual(self.lacking(f'{name}.{key}', cls, getattr(our, key)), set())

    def test_objects(self):
        for method in ('fork', 'spawn'):
            made = []
            for package in (multiprocessing, procession):
                context = package.get_context(method)
                child = context.Process(target=print, args=('',), kwargs={'end': ''})
                self.addCleanup(child.join)
                unstarted = self.private(child)
                child.start()
                default = package.context._default_context
                made.append([unstarted, self.private(child), self.private(child._popen), self.private(context),
                             self.private(package.current_process()), self.private(default), child._config.keys()])
            for standard, our in zip(*made, strict=True):
                self.assertLessEqual(standard, our)

    @staticmethod
    def private(value):
        return set(vars(value))

    def test_contexts_of_others(self):
        """A library that registers a start method of its own, and starts processes by it."""
        started = []

        class Process(procession.process.BaseProcess):
            _start_method = 'theirs'

            @staticmethod
            def _Popen(process_obj):
                from procession import popen_fork

                class Popen(popen_fork.Popen):
                    method = 'theirs'

                    def _launch(self, process_obj):
                        started.append(process_obj.name)
                        super()._launch(process_obj)
                return Popen(process_obj)

        class Context(procession.context.BaseContext):
            _name = 'theirs'

        Context.Process = Process
        contexts = procession.context._concrete_contexts
        contexts['theirs'] = Context()
        self.addCleanup(contexts.pop, 'theirs')
        reader, writer = procession.Pipe(False)
        with reader, writer:
            child = procession.get_context('theirs').Process(
                target=lambda: writer.send(procession.get_start_method()), name='one')
            child.start()
            self.assertEqual(reader.recv(), 'theirs')
            child.join()
        self.assertEqual((child.exitcode, started), (0, ['one']))


    def test_children_of_others(self):
        """What watches them has what the standard's has, and no more: loky starts its workers so."""

        class Popen:
            def __init__(self, process_obj):
                self.program = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
                self.pid, self.returncode = self.program.pid, None
                self.sentinel = os.pidfd_open(self.pid)

            def poll(self):
                self.returncode = self.program.poll()
                return self.returncode

            def wait(self, timeout=None):
                self.program.communicate(b'\n', timeout)
                return self.poll()

            def close(self):
                os.close(self.sentinel)

        class Process(procession.process.BaseProcess):
            _start_method = None
            _Popen = Popen

        children = [Process() for _ in range(3)]
        for child in children:
            child.start()
        self.assertLessEqual(set(children), set(procession.active_children()))
        for child in children:
            child.join()
            self.assertEqual(child.exitcode, 0)
            self.assertNotIn(child, procession.active_children())
            child.close()


class SignaturesTest(unittest.TestCase):

    def compare(self, label, standard, our, is_method=False):
        wanted, found = signature(standard), signature(our)
        if is_method:
            wanted, found = without_self(wanted), without_self(found)
        if wanted is None or label in DIFFERENT or label in COMPILED:
            return
        self.assertIsNotNone(found, label)
        if is_variadic(found) and not is_variadic(wanted):
            with self.assertRaises(NotImplementedError, msg=label) as caught:
                our()
            self.assertIn(our.__name__, str(caught.exception))
            return
        self.assertEqual(list(differences(wanted, found, ADDED.get(label, ()))), [], f'{label}{found}, not {wanted}')

    def test_the_package(self):
        for name in multiprocessing.__all__:
            standard, our = getattr(multiprocessing, name), getattr(procession, name)
            if is_code(standard) and standard not in SHARED:
                with self.subTest(name):
                    self.compare(name, standard, our)

    def test_modules(self):
        for name, module in STANDARD.items():
            for key, standard in public(name, module):
                if standard not in SHARED:
                    with self.subTest(module=name, name=key):
                        self.compare(f'{name}.{key}', standard, getattr(ours(name), key))

    def test_methods(self):
        """Those of the classes that are built: one that isn't cannot be made, so that nobody calls its methods."""
        for name, module in STANDARD.items():
            for key, standard in public(name, module):
                our = getattr(ours(name), key)
                if not inspect.isclass(standard) or standard in SHARED or is_unbuilt(our):
                    continue
                for method, wanted in vars(standard).items():
                    if not method.startswith('_') and inspect.isroutine(wanted):
                        with self.subTest(module=name, name=key, method=method):
                            label = f'{name}.{key}.{method}'
                            self.assertTrue(hasattr(our, method))
                            is_bound = isinstance(wanted, (classmethod, staticmethod))
                            self.compare(label, getattr(standard, method), getattr(our, method), not is_bound)

    def test_a_compiled_constructor_takes_the_standards_arguments(self):
        lock = ours('synchronize').Lock(ctx=procession.get_context())
        self.assertTrue(lock.acquire(block=True, timeout=None))
        self.assertFalse(lock.acquire(False))
        with self.assertRaises(TypeError):
            ours('synchronize').Lock(1)

    def test_the_comparison_finds_what_it_looks_for(self):
        def standard(a, b=1, *, c=None): pass
        def same(a, b=1, *, c=None): pass
        def more(a, b=1, d=2, *, c=None): pass
        def fewer(a, *, c=None): pass
        def other_default(a, b=2, *, c=None): pass
        def other_kind(a, b=1, c=None): pass
        def other_order(b=1, a=None, *, c=None): pass
        def demanding(a, b=1, *, c=None, d): pass

        def found(our, added=()):
            return list(differences(inspect.signature(standard), inspect.signature(our), added))

        self.assertEqual(found(same), [])
        self.assertEqual(found(more), ['d=2 besides'])
        self.assertEqual(found(more, ['d']), [])
        self.assertEqual(found(fewer), ['no b'])
        self.assertEqual(found(other_default), ['b=2 in place of b=1'])
        self.assertEqual(found(other_kind), ['c is positional or keyword, not keyword-only'])
        self.assertEqual(found(other_order), ['a is in another place', 'b is in another place'])
        self.assertEqual(found(demanding, ['d']), ['d besides'])


class UnbuiltTest(unittest.TestCase):

    def test_it_says_so_when_it_is_used(self):
        for method in ('fork', 'spawn'):
            for name, use in UNBUILT.items():
                with self.subTest(method=method, name=name):
                    with self.assertRaises(NotImplementedError) as caught:
                        use(procession.get_context(method))
                    self.assertRegex(str(caught.exception), rf'\b{name}\b')

    def test_unbuilt_classes_and_functions(self):
        """Whatever is unbuilt names itself, a subclass included."""
        unbuilt = {(module.__name__, key): value for module in our_modules()
                   for key, value in vars(module).items()
                   if is_code(value) and is_unbuilt(value) and value.__module__ == module.__name__}
        self.assertIn(('procession.managers', 'SyncManager'), unbuilt)
        for (module, key), value in unbuilt.items():
            uses = [value, type('Sub', (value,), {})] if inspect.isclass(value) else [value]
            for use in uses:
                with self.subTest(module=module, name=key):
                    with self.assertRaises(NotImplementedError) as caught:
                        use(1, more=2)
                    self.assertIn(value.__name__, str(caught.exception))


class IndependenceTest(unittest.TestCase):

    def test_nothing_is_the_standards(self):
        """No class, function, module or object of the package is the standard's, but for the shared exceptions."""
        for module in [procession, *our_modules()]:
            # The one place that has the standard's modules, and nothing else.
            if module.__name__ == 'procession._standard':
                continue
            members = [(key, value) for key, value in vars(module).items()]
            members += [(f'{name}.{key}', value) for name, cls in vars(module).items() if inspect.isclass(cls)
                        for key, value in vars(cls).items()]
            for key, value in members:
                with self.subTest(module=module.__name__, name=key):
                    self.assertFalse(self.is_standard(value) and value not in SHARED, value)

    @staticmethod
    def is_standard(value):
        if isinstance(value, types.ModuleType):
            return value.__name__.split('.')[0] == 'multiprocessing'
        value = getattr(value, '__func__', value)
        origin = value if is_code(value) else type(value)
        return (getattr(origin, '__module__', None) or '').split('.')[0] == 'multiprocessing'

    def test_the_search_would_find_them(self):
        standard = [multiprocessing.queues, multiprocessing.Queue, multiprocessing.context.Process,
                    multiprocessing.context._default_context, multiprocessing.process.current_process]
        for value in standard:
            self.assertTrue(self.is_standard(value), value)

    def test_the_standards_machinery_is_not_loaded(self):
        """Not even after use; only the modules whose exceptions, reducers and current process are shared."""
        program = '''if True:
            import sys
            import procession
            from procession import *
            queue, lock = procession.Queue(), procession.Lock()
            def work():
                with lock:
                    queue.put(1)
            child = procession.get_context('fork').Process(target=work)
            child.start()
            assert queue.get() == 1
            child.join()
            with procession.get_context('fork').Pool(1) as pool:
                assert pool.map(abs, [-1]) == [1]
            one, other = procession.Pipe()
            one.send(2)
            assert other.recv() == 2
            print(*sorted(name for name in sys.modules if name.startswith('multiprocessing')))
        '''
        environment = os.environ | {'PYTHONPATH': str(PACKAGE.parent), 'PYTHONDONTWRITEBYTECODE': '1'}
        said = subprocess.run([sys.executable, '-c', program], env=environment, timeout=WATCHDOG, check=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout
        loaded = set(said.split())
        self.assertLessEqual(loaded, {'multiprocessing', 'multiprocessing.context', 'multiprocessing.process',
                                      'multiprocessing.reduction'})


if __name__ == '__main__':
    unittest.main()
