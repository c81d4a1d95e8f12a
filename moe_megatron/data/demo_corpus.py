"""A corpus that every machine already has: the source of its Python standard library.

Each module gives two documents. `code` is the source without docstrings and comments; `prose` is
the docstrings and comments without code. Two domains that differ this much let a small mixture
of experts specialise visibly within minutes, without a download. The same CPython gives the same
corpus. The module knows nothing about tokens.
"""

import ast
import hashlib
import io
import json
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.files import publishing

DOMAINS = ("code", "prose")
DEMO_TEXT_KEY = "text"
# The library yields about 9 MB; CPython's own tests, if installed, add 20 MB.
TARGET_BYTES = 30_000_000
# Tables of characters and of help texts: neither code nor prose.
_SKIPPED = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
_MIN_PROSE_CHARACTERS = 40
_MIN_CODE_CHARACTERS = 100
_BLANK_LINES = re.compile(r"\n(?:[ \t\f]*\n)+")
_TRAILING_SPACE = re.compile(r"[ \t\f]+$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One module, divided into code and prose. Either may be empty."""

    source: str
    """Path below the standard library, such as "json/decoder.py"."""
    code: str
    prose: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """A docstring or comment: its extent in characters, its prose, and what replaces it in code."""

    start: int
    stop: int
    prose: str
    replacement: str
    is_comment: bool


def write_demo_corpus(
    directory: Path, *, library: Path | None = None, target_bytes: int = TARGET_BYTES
) -> dict[str, Path]:
    """Write `code.jsonl` and `prose.jsonl`, one {"text", "domain", "source"} object per line.

    Args:
        directory: Directory for the files.
        library: Directory of Python modules; by default the running standard library.
        target_bytes: Size of both domains (UTF-8) from which on tests are left out.

    Returns:
        Path of the file of each domain.

    Raises:
        DataError: If the library holds no source, or the files cannot be written.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    lines: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    # Validation takes the last documents: shuffled, they resemble the rest; in order, they would
    # all be tests.
    for module in sorted(read_library(library, target_bytes), key=_shuffled):
        for domain, text in (("code", module.code), ("prose", module.prose)):
            if text:
                record = {DEMO_TEXT_KEY: text, "domain": domain, "source": module.source}
                lines[domain].append(json.dumps(record, ensure_ascii=False) + "\n")
    if not all(lines.values()):
        raise DataError(
            f"the demo corpus is made from the source of Python's standard library, and {library} "
            "holds none (a frozen Python?); name your own text files instead."
        )
    paths = {domain: directory / f"{domain}.jsonl" for domain in DOMAINS}
    for domain, path in paths.items():
        with publishing(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(lines[domain])
    return paths


def read_library(library: Path, target_bytes: int = TARGET_BYTES) -> Iterator[Module]:
    """Yield the modules below `library` in a fixed order, tests last and only up to the target.

    Modules that do not parse or are not UTF-8 text (some tests are so on purpose) are left out.
    """
    paths = [path.relative_to(library) for path in library.rglob("*.py")]
    paths = [path for path in paths if not _SKIPPED.intersection(path.parts)]
    total = 0
    for path in sorted(paths, key=lambda path: (_is_test(path), path.as_posix())):
        if _is_test(path) and total >= target_bytes:
            return
        source = _read_source(library / path)
        module = split_module(source, path.as_posix()) if source is not None else None
        if module is not None:
            total += len(module.code.encode()) + len(module.prose.encode())
            yield module


def _shuffled(module: Module) -> bytes:
    """Sort key of an order that is unrelated to names and the same on every machine."""
    return hashlib.blake2b(module.source.encode()).digest()


def _is_test(path: Path) -> bool:
    return not {"test", "tests", "idle_test"}.isdisjoint(path.parts)


def _read_source(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        source.encode()
    except (SyntaxError, UnicodeError, OSError):
        return None
    return source


def split_module(source: str, name: str) -> Module | None:
    """Divide the text of a module into code and prose.

    Args:
        source: Python source.
        name: Becomes `Module.source`.

    Returns:
        The two texts, or None if `source`, or the code left of it, is not valid Python. A text that
        is too short to learn from is empty.
    """
    try:
        spans = sorted([*_docstrings(source), *_comments(source)], key=lambda span: span.start)
        code = _cut(source, spans)
        _parse(code)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    prose = _join_prose(source, spans)
    return Module(
        source=name,
        code=code if len(code) >= _MIN_CODE_CHARACTERS else "",
        prose=prose if len(prose) >= _MIN_PROSE_CHARACTERS else "",
    )


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # Invalid escapes and the like in the library are not our problem.
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _docstrings(source: str) -> Iterator[_Span]:
    # Not splitlines(): Python counts lines by \n alone, and its source has form feeds.
    lines = source.split("\n")
    starts = _line_starts(lines)
    for node in ast.walk(_parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        literal = node.body[0]
        assert literal.end_lineno is not None
        assert literal.end_col_offset is not None
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        yield _Span(
            start=_offset(lines, starts, literal.lineno, literal.col_offset),
            stop=_offset(lines, starts, literal.end_lineno, literal.end_col_offset),
            prose=text,
            # A body must not become empty.
            replacement="pass" if alone else "",
            is_comment=False,
        )


def _comments(source: str) -> Iterator[_Span]:
    starts = _line_starts(source.split("\n"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = starts[token.start[0] - 1] + token.start[1]
            text = token.string.lstrip("#!:").strip()
            yield _Span(
                start=start,
                stop=start + len(token.string),
                # A ruler of dashes counts as a blank line.
                prose=text if any(character.isalnum() for character in text) else "",
                replacement="",
                is_comment=True,
            )


def _line_starts(lines: list[str]) -> list[int]:
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _offset(lines: list[str], starts: list[int], line: int, column: int) -> int:
    """Character offset of a position of `ast`, whose columns count UTF-8 bytes."""
    return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())


def _cut(source: str, spans: list[_Span]) -> str:
    """`source` without `spans`, without trailing space, and with single blank lines."""
    pieces = []
    here = 0
    for span in spans:
        start, stop = (span.start, span.stop) if span.replacement else _whole_lines(source, span)
        pieces += [source[here:start], span.replacement]
        here = stop
    code = _TRAILING_SPACE.sub("", "".join([*pieces, source[here:]]))
    return _BLANK_LINES.sub("\n\n", code).strip("\n") + "\n"


def _whole_lines(source: str, span: _Span) -> tuple[int, int]:
    """Extend a span that is alone on its lines to whole lines, so that no gap remains."""
    line_start = source.rfind("\n", 0, span.start) + 1
    line_end = source.find("\n", span.stop)
    line_end = len(source) if line_end < 0 else line_end + 1
    around = source[line_start : span.start] + source[span.stop : line_end]
    return (span.start, span.stop) if around.strip() else (line_start, line_end)


def _join_prose(source: str, spans: list[_Span]) -> str:
    """Paragraphs of docstrings and comments; neighbouring comment lines are one paragraph."""
    paragraphs: list[str] = []
    last_comment_end: int | None = None
    for span in spans:
        between = None if last_comment_end is None else source[last_comment_end : span.start]
        if (
            span.is_comment
            and between is not None
            and between.count("\n") == 1
            and between.isspace()
        ):
            paragraphs[-1] += "\n" + span.prose
        else:
            paragraphs.append(span.prose)
        last_comment_end = span.stop if span.is_comment else None
    cleaned = (paragraph.strip() for paragraph in paragraphs)
    return "\n\n".join(text for text in cleaned if _is_prose(text))


def _is_prose(text: str) -> bool:
    """Long enough, mostly letters (no tables of numbers, little code), and encodable."""
    if len(text) < _MIN_PROSE_CHARACTERS:
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    # A docstring may contain a lone surrogate, written as an escape.
    return letters >= 0.7 * len(text) and not re.search("[\ud800-\udfff]", text)
