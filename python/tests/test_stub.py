"""The compiled module's stub says what the module has: names, bases, parameters and their defaults."""

import ast
import pathlib
import types
import unittest

from procession import _core

STUB = pathlib.Path(_core.__file__).with_name('_core.pyi')
#: What every class or module has, and no stub names.
COMMON = {'__dict__', '__doc__', '__module__', '__weakref__', '__name__', '__package__', '__loader__', '__spec__', '__file__',
          '__all__', '__path__', '__cached__'}
#: A slot that interpreters before 3.12 have and don't show.
UNSEEN = '__buffer__'
#: A signature that the interpreter makes up for a slot.
MADE_UP = {'($self, /, *args, **kwargs)', '($type, *args, **kwargs)'}


def names_of(thing):
    # What the shim gives a compiled class is written in Python, and is no matter of the stub's.
    python = (types.FunctionType, property, classmethod, staticmethod)
    return {name for name, value in vars(thing).items() if name not in COMMON | {UNSEEN} and not isinstance(value, python)}


def stub_names(body):
    for node in body:
        match node:
            case ast.FunctionDef(name=name) if name == UNSEEN:
                continue
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node


def parameters(arguments):
    """Each parameter, with its default, as a text."""
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    texts = [(parameter.arg.removesuffix('_'), default and ast.unparse(default))
             for parameter, default in zip(plain, defaults)]
    if arguments.vararg:
        texts.append(('*' + arguments.vararg.arg, None))
    texts += [(parameter.arg, default and ast.unparse(default))
              for parameter, default in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        texts.append(('**' + arguments.kwarg.arg, None))
    return texts


def parse_signature(text):
    # `class` is a parameter of two functions, and a word of the language.
    text = text.replace('$', '').replace('(class,', '(class_,').replace(', /', '').replace('(/)', '()')
    return parameters(ast.parse(f'def f{text}: ...').body[0].args)


class StubTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.body = ast.parse(STUB.read_text()).body
        self.stub = {name: node for name, node in stub_names(self.body) if name != '_T'}

    def test_it_lies_beside_the_module_and_says_that_it_is_typed(self):
        self.assertTrue(STUB.with_name('py.typed').exists())

    def test_names(self):
        self.assertEqual(set(self.stub), names_of(_core))
        for name, node in self.stub.items():
            kind = getattr(_core, name)
            self.assertEqual(isinstance(node, ast.ClassDef), isinstance(kind, type), name)
            if isinstance(node, ast.ClassDef):
                self.assertEqual({name for name, _ in stub_names(node.body)}, names_of(kind), name)

    def test_bases(self):
        for name, node in self.stub.items():
            if isinstance(node, ast.ClassDef):
                bases = [base.value.id if isinstance(base, ast.Subscript) else base.id for base in node.bases]
                bases = [base for base in bases if base != 'Generic'] or ['object']
                self.assertEqual(bases, [base.__name__ for base in getattr(_core, name).__bases__], name)

    def check(self, where, node, made):
        text = getattr(made, '__text_signature__', None)
        if isinstance(node, ast.AnnAssign) or any(
                isinstance(decorator, ast.Name) and decorator.id == 'property' for decorator in node.decorator_list):
            self.assertIsNone(text, where)
        elif text not in MADE_UP:
            self.assertIsNotNone(text, where)
            self.assertEqual(parameters(node.args), parse_signature(text), where)

    def test_parameters(self):
        for name, node in self.stub.items():
            made = getattr(_core, name)
            if isinstance(node, ast.ClassDef):
                for method, inner in stub_names(node.body):
                    self.check(f'{name}.{method}', inner, vars(made)[method])
            elif isinstance(node, ast.FunctionDef):
                self.check(name, node, made)


if __name__ == '__main__':
    unittest.main()
