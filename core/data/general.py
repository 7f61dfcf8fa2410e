"""General text that every machine has: the documentation inside Python's own standard library.

A model that has read only one company's files does not know English. The docstrings of the standard library and the
language reference in `pydoc_data.topics` are edited English prose, present wherever Python is, so nothing is
downloaded: 1.4 MB and 0.4 MB, about 250,000 words, in Python 3.11 to 3.13. They are read with `ast`, never imported: no
module's code runs. The list of files is fixed, so that the same Python gives the same text; a module that this Python
lacks (removed, or there only as bytecode) is skipped, and the count is said.

One text a module: its own docstring, then those of its classes and functions in the order of the file, each under the
object's name; a docstring that stood before in the same module is not repeated. One text a topic of the language
reference; a paragraph that stood in an earlier topic is left out, because whole sections of it are repeated and a small
model would learn those by heart.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from luthier.core.console import say

__all__ = ["MODULES", "python_documentation"]

# Those of which at least a ninth is docstrings, 900 characters or more; without what Python 3.13 removed.
MODULES = """
    abc ast asyncio.base_events asyncio.events asyncio.futures asyncio.locks asyncio.protocols asyncio.queues
    asyncio.runners asyncio.sslproto asyncio.streams asyncio.tasks asyncio.timeouts asyncio.transports base64 bdb bisect
    bz2 calendar cmd code codecs codeop collections compileall concurrent.futures._base concurrent.futures.process
    configparser contextlib copy csv ctypes curses.textpad dbm difflib dis doctest email._encoded_words
    email._header_value_parser email._parseaddr email._policybase email.base64mime email.charset email.errors
    email.generator email.header email.headerregistry email.message email.parser email.policy email.quoprimime
    email.utils encodings enum filecmp fileinput fnmatch fractions ftplib functools __future__ getopt getpass graphlib
    gzip heapq hmac http http.client http.cookiejar http.cookies http.server imaplib importlib._bootstrap
    importlib._bootstrap_external importlib.abc importlib.metadata importlib.util inspect io ipaddress json json.decoder
    json.encoder linecache logging logging.config logging.handlers lzma mailbox mimetypes multiprocessing.context
    multiprocessing.process multiprocessing.shared_memory numbers operator optparse os pathlib pdb pkgutil platform
    poplib posixpath profile py_compile pyclbr _pydecimal _pyio queue quopri random re rlcompleter runpy sched secrets
    selectors shelve shutil site smtplib socket socketserver sqlite3 ssl statistics subprocess symtable tarfile tempfile
    textwrap threading timeit tkinter tkinter.colorchooser tkinter.dnd tkinter.filedialog tkinter.font
    tkinter.simpledialog tkinter.ttk tokenize traceback turtle types typing unittest unittest.case unittest.loader
    unittest.mock unittest.result urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref
    wsgiref.handlers wsgiref.headers wsgiref.util wsgiref.validate xml.etree.ElementTree xml.sax xml.sax.handler
    xml.sax.saxutils xml.sax.xmlreader xmlrpc.server zipapp zipimport
""".split()  # noqa: SIM905
TOPICS = "pydoc_data.topics"
REPEATED = 60  # characters from which on a paragraph counts as repeated; shorter ones are headings and single words

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_documentation(stdlib: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every module of the list and of every topic of the language reference, always in the same
    order. `stdlib` is the folder of the standard library, this Python's by default."""
    root = Path(stdlib or sysconfig.get_path("stdlib"))
    missing = []
    for name in MODULES:
        if file := _source(root, name):
            yield name, module_text(file.read_bytes(), name)
        else:
            missing.append(name)
    if file := _source(root, TOPICS):
        yield from topic_texts(file.read_bytes())
    else:
        missing.append(TOPICS)
    if missing:
        say(
            f"general text: {len(missing)} of {len(MODULES) + 1} modules of the standard library have no source here, "
            f"skipped ({', '.join(missing[:5])}{', …' if len(missing) > 5 else ''})"
        )


def _source(root: Path, name: str) -> Path | None:
    """The file of a module, which some versions keep as a package."""
    stem = root.joinpath(*name.split("."))
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None)


def module_text(source: bytes, name: str) -> str:
    """The docstrings of one module, each under the name of what it documents."""
    parts, seen = [], set()
    for title, node in _documented(ast.parse(source), name):
        docstring = ast.get_docstring(node)
        if docstring and docstring not in seen:
            seen.add(docstring)
            parts.append(f"{title}\n\n{docstring.strip()}")
    return "\n\n".join(parts) + "\n"


def _documented(node: ast.AST, title: str) -> Iterator[tuple[str, Documented]]:
    """A module, class or function and all that stand in it, with their dotted names, in the order of the file; those
    under an `if` or `try` too."""
    if isinstance(node, ast.Module):
        yield title, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{title}.{child.name}", child
            yield from _documented(child, f"{title}.{child.name}")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _documented(child, title)


def topic_texts(source: bytes) -> Iterator[tuple[str, str]]:
    """The topics of pydoc_data/topics.py, which is one assignment of a dict literal, without repeated paragraphs."""
    seen: set[str] = set()
    for topic, text in _topics(source).items():
        kept = []
        for paragraph in text.strip().split("\n\n"):
            if len(paragraph) < REPEATED or paragraph not in seen:
                kept.append(paragraph)
            seen.add(paragraph)
        yield f"{TOPICS}: {topic}", "\n\n".join(kept) + "\n"


def _topics(source: bytes) -> dict[str, str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}
