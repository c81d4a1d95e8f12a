import ast
import inspect
import json
import textwrap

import pytest

from moe_megatron.data import prepare, readers, shards, worker
from moe_megatron.data.demo_corpus import read_library, split_module, write_demo_corpus
from moe_megatron.errors import DataError

SOURCE = textwrap.dedent('''\
    #!/usr/bin/python
    """What this module is about, at some length, so that it is kept."""

    # A comment that goes on for
    # two lines and is long enough.
    # ------------------------------------------------------
    import os  # caf\u00e9 is a place where people drink coffee


    class Error(Exception):
        """Raised when something that matters went wrong somewhere."""


    def work(x):
        """Do the work.

            Indented detail of how the work is done in practice.
        Back at the margin.
        """

        s = "# no comment"; t = """no

        docstring"""
        return x, s, t
    ''')


def without_docstrings(source):
    """The slow, obvious twin: docstrings removed from the syntax tree."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is None:
                continue
            keep = node.body[1:]
            node.body = keep if keep or isinstance(node, ast.Module) else [ast.Pass()]
    return ast.dump(tree)


def test_code_and_prose_are_divided():
    module = split_module(SOURCE, "x.py")
    assert module.code == textwrap.dedent('''\
        import os

        class Error(Exception):
            pass

        def work(x):

            s = "# no comment"; t = """no

            docstring"""
            return x, s, t
        ''')
    assert module.prose == textwrap.dedent("""\
        What this module is about, at some length, so that it is kept.

        A comment that goes on for
        two lines and is long enough.

        caf\u00e9 is a place where people drink coffee

        Raised when something that matters went wrong somewhere.

        Do the work.

            Indented detail of how the work is done in practice.
        Back at the margin.""")


@pytest.mark.parametrize("module", [readers, shards, prepare, worker, ast, inspect, textwrap])
def test_code_is_the_same_program_without_docstrings(module):
    source = inspect.getsource(module)
    code = split_module(source, "x.py").code
    assert ast.dump(ast.parse(code)) == without_docstrings(source)


@pytest.mark.parametrize("source", ["def broken(:", "x = '", "print 1", "\0", '"doc"; x = 1'])
def test_source_that_cannot_be_divided_is_left_out(source):
    assert split_module(source, "x.py") is None


def test_short_fragments_and_rulers_are_dropped():
    module = split_module("# TODO\nx = 1\n# " + "-=" * 40 + "\n", "x.py")
    assert (module.code, module.prose) == ("", "")


def write_library(root):
    for name in ("b.py", "a/x.py", "test/t1.py", "test/t2.py", "site-packages/no.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE)
    (root / "bad.py").write_bytes(b"# caf\xe9\n")
    return root


def test_library_is_read_in_order_and_tests_fill_up(tmp_path):
    library = write_library(tmp_path)
    names = [module.source for module in read_library(library)]
    assert names == ["a/x.py", "b.py", "test/t1.py", "test/t2.py"]
    names = [module.source for module in read_library(library, target_bytes=1)]
    assert names == ["a/x.py", "b.py"]


def test_corpus_has_one_labelled_file_a_domain(tmp_path):
    paths = write_demo_corpus(tmp_path, library=write_library(tmp_path / "lib"))
    for domain, path in paths.items():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert path == tmp_path / f"{domain}.jsonl"
        assert [record["domain"] for record in records] == [domain] * 4
        # Mixed, so that validation, which takes the last, is not all tests.
        order = ["b.py", "test/t2.py", "a/x.py", "test/t1.py"]
        assert [record["source"] for record in records] == order
        assert set(records[0]) == {"text", "domain", "source"}


def test_python_without_source_names_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"holds none .* name your own text files"):
        write_demo_corpus(tmp_path, library=tmp_path / "none")
