"""Silence: the output of libraries, kept off the terminal."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal whatever libraries print, warn and log, C++ included."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        for number, copy in saved.items():
            os.dup2(nowhere.fileno(), number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
