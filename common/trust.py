"""Trust in code that a file names: a ``module:Name`` in it is imported only where a person agreed.

A name that the person has given in this process, on the command line or as a setting, needs no
further word. One that stands in a run folder, a plan or a model file needs ``--trust-code``
(``trust_code=True``). Either way the module is remembered in ``~/.superfednas/trusted.json`` by its
name and the digest of its source, so that it is asked for again only when the source has changed.
The digest is of the module's own file and of the packages it lies in, and of where they lie: what
these import lies beside them, and another folder may hold the same module with another companion.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from superfednas.common.files import write_whole
from superfednas.common.imports import NotImportableError, find

OPTION = "--trust-code"
IMPORTED = ("space", "task", "dataset", "method", "assignment", "averaging")
"""The settings whose ``module:Name`` is imported."""
_FILE = Path("~/.superfednas/trusted.json")
_given: set[str] = set()
_folders: list[Path] = []
_trusting: ContextVar[bool] = ContextVar("trusting", default=False)


class UntrustedCodeError(ValueError):
    """A file names a module that nobody has trusted; the message names both, and the option."""

    refusal = "untrusted-code"


@contextlib.contextmanager
def trusting(trust_code: bool = True) -> Iterator[None]:
    """Trust all code that files name, for the length of a block; False changes nothing."""
    token = _trusting.set(trust_code or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def trusts() -> bool:
    """Return whether this is such a block."""
    return _trusting.get()


def give(values: Iterable[object]) -> None:
    """Take every ``module:Name`` among these values as given by the person."""
    _given.update(value for value in values if isinstance(value, str) and ":" in value)


def trust_folder(folder: Path) -> None:
    """Trust the modules in a folder: the app that this process was started to run."""
    _folders[:] = [folder]


def lies_in(module: str, folder: Path) -> bool:
    """Return whether all that importing a module runs lies in a folder, the packages included."""
    files, inside = source_files(module), folder.resolve()
    # A folder without an __init__ is no package of the app's: it may hold anything.
    whole = len(files) == 1 + module.count(".")
    return whole and all(file.resolve().is_relative_to(inside) for file in files)


def references(values: Mapping[str, object]) -> list[str]:
    """Return every ``module:Name`` among these settings (or options of a space)."""
    found = {key: values.get(key) for key in IMPORTED} if isinstance(values, Mapping) else {}
    return [
        value
        for key, value in found.items()
        if isinstance(value, str) and ":" in value and not (key == "dataset" and _is_data(value))
    ]


def _is_data(name: str) -> bool:
    """Return whether a data set with a colon in its name is no ``module:function``."""
    return name.startswith("hf:") or name.endswith(".npz") or Path(name).expanduser().is_dir()


def check_code(values: Mapping[str, object], where: str | Path, trust_code: bool = False) -> None:
    """Check the modules that a file names, before any of them is imported.

    Parameters
    ----------
    values
        What the file says: settings, or options of a space.
    where
        The file, for the error.
    trust_code
        Trust them, and remember that.

    Raises
    ------
    UntrustedCodeError
        If one is not trusted.
    NotImportableError
        If one is in no place where modules are looked for.
    """
    named = [reference for reference in references(values) if reference not in _given]
    if not named:
        return
    if trust_code or _trusting.get():
        remember(named)
        return
    trusted = _remembered()
    for reference in named:
        module = reference.partition(":")[0]
        if any(lies_in(module, folder) for folder in _folders):
            continue
        if source_digest(module) not in trusted.get(module, []):
            raise _untrusted(reference, module, where)


def _untrusted(reference: str, module: str, where: str | Path) -> ValueError:
    """Return the refusal of a module, which says what would run."""
    files = source_files(module)
    if not files and not _exists(module):
        return NotImportableError(
            f"{where} names {reference!r}, and there is no module {module!r} here: it must lie in "
            "the current folder or on PYTHONPATH"
        )
    what = str(files[-1]) if files else f"the module {module!r}"
    return UntrustedCodeError(
        f"{where} names {reference!r}, which would run {what}: if you trust that code, give "
        f"{OPTION} (in Python: trust_code=True)"
    )


def remember(named: Iterable[str]) -> None:
    """Trust these ``module:Name``: in this process, and their modules until they change."""
    named = list(named)
    give(named)
    trusted = before = _remembered()
    for module in {reference.partition(":")[0] for reference in named}:
        if digest := source_digest(module):
            trusted = {**trusted, module: sorted({digest, *trusted.get(module, [])})}
    if trusted != before:
        # Where it cannot be kept, or the user has no home, the next process asks again.
        with contextlib.suppress(OSError, RuntimeError):
            file = _FILE.expanduser()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(trusted, indent=1, sort_keys=True), mode=0o600)


def source_files(module: str) -> list[Path]:
    """Return the files that importing a module runs, its own last; none where it is not found.

    Nothing is imported, neither the module nor the packages it lies in.
    """
    specs = _specs(module)
    if not specs or not specs[-1].has_location:
        return []
    return [Path(spec.origin) for spec in specs if spec.has_location and spec.origin]


def source_digest(module: str) -> str:
    """Return the SHA-256 of :func:`source_files` and of their places; empty where there is none."""
    total = hashlib.sha256()
    try:
        files = source_files(module)
        for file in files:
            total.update(hashlib.sha256(str(file.resolve()).encode()).digest())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return ""
    return total.hexdigest() if files else ""


def _exists(module: str) -> bool:
    return module == "__main__" or bool(_specs(module))


def _specs(module: str) -> list[ModuleSpec]:
    """Return what importing a module loads, the outermost package first; empty: not found."""
    found: list[ModuleSpec] = []
    parts = module.split(".")
    for number in range(len(parts)):
        name = ".".join(parts[: number + 1])
        spec = _spec(name, found[-1].submodule_search_locations if found else None)
        if spec is None:
            return []
        found.append(spec)
    return found


def _spec(name: str, path: Iterable[str] | None) -> ModuleSpec | None:
    if path is not None:
        return PathFinder.find_spec(name, list(path))
    if "." in name:
        return None  # what it should lie in is no package
    try:
        return find(name)
    except ValueError:  # of `__main__`, and of no name at all
        return None


def _remembered() -> dict[str, list[str]]:
    """Return the trusted digests by module; a file that cannot be read trusts nothing."""
    try:
        found = json.loads(_FILE.expanduser().read_text())
        return {str(module): [str(each) for each in digests] for module, digests in found.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, TypeError):
        return {}
