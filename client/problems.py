"""Problems: what a server learns of a node that cannot, or does not, do as it is asked.

A text of an error may name files of the node's, or say something of its data. What is left out for
the server is printed here, for the node's operator.
"""

import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from superfednas.client.allow import NotAllowedError
from superfednas.client.node_config import Config, NodeConfigError, tells_scores
from superfednas.client.worker.handover import on_a_node
from superfednas.common.settings import SettingsError
from superfednas.wire.errands import NOT_ALLOWED, PROBLEM, PROBLEM_CODE
from superfednas.wire.order import CONFIG
from superfednas.wire.source import source_root

Handler = Callable[[Message, Context], Message]
_PATH = re.compile(r"(?<![\w:./~)-])(?:~?/|[A-Za-z]:\\)[^\s'\"(),;:<>]*")
_MARK = "\ue000"


class NodeError(RuntimeError):
    """An error of the node's, in the words that a server may read."""


def answered(handle: Handler) -> Handler:
    """Let a handler of messages answer what is not allowed, and fail in words for a server."""

    @wraps(handle)
    def answer(message: Message, context: Context) -> Message:
        config = context.node_config
        try:
            return handle(message, context)
        except NotAllowedError as error:
            content = RecordDict({CONFIG: ConfigRecord({**problem_of(error, config)})})
            return Message(content, reply_to=message)
        except Exception as error:
            if not on_a_node():
                raise
            said = problem_of(error, config)[PROBLEM]
            raise NodeError(f"{type(error).__name__}: {said}") from error

    return answer


def problem_of(error: Exception, config: Config) -> dict[str, str]:
    """Return a problem as it is sent, and print what it leaves out.

    Parameters
    ----------
    error
        What is wrong.
    config
        The node config. In a simulation nothing is left out, unless ``tell-scores`` is false.

    Returns
    -------
    dict
        The sentence and, where the operator does not allow what was asked, the code.
    """
    if isinstance(error, NotAllowedError):
        return {PROBLEM: str(error), PROBLEM_CODE: NOT_ALLOWED}
    text = str(error)
    said = without_paths(text, config) if on_a_node() else text
    if not _of_the_config(error) and not _tells(config):
        said = f"{type(error).__name__}, of which the node's own log says more"
    if said != text:
        print(f"error: {text}", file=sys.stderr, flush=True)
    return {PROBLEM: said}


def without_paths(text: str, config: Config) -> str:
    """Return a text without paths of this machine: those of the node config by their keys."""
    keys = [key for key in ("data-path", "state-dir", "data-cache") if key in config]
    roots = {str(source_root()): "", str(Path.home()): ""}
    for key in keys:
        path = str(config[key])
        if _PATH.match(path):
            roots |= {path: key, _absolute(path): key}
    # A root may have spaces in it, where a path would end: first each becomes a path of one mark.
    for root in sorted(roots, key=len, reverse=True):
        if root != "/":
            text = text.replace(root, f"/{_MARK}{roots[root]}{_MARK}")

    def name(match: re.Match[str]) -> str:
        key = match.group().split(_MARK)[1] if _MARK in match.group() else ""
        return f"({key or 'a path'})"

    return _PATH.sub(name, text)


def _of_the_config(error: Exception) -> bool:
    return isinstance(error, NodeConfigError | SettingsError)


def _tells(config: Config) -> bool:
    try:
        return tells_scores(config)
    except NodeConfigError:
        return False


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except (OSError, RuntimeError):
        return path
