"""Lines of ``metrics.jsonl``: the rows of a run as JSON values, read and written here alone.

What rows of earlier versions lack has a default; what those of later ones have beside is skipped.
"""

from collections.abc import Mapping
from typing import Any

from superfednas.common.damage import fill
from superfednas.records.refusals import known
from superfednas.records.rows import (
    ClientRow,
    Covered,
    EvaluationRow,
    Kind,
    LateRow,
    RoundRow,
    Row,
    Rung,
    Spread,
    SummaryRow,
)

_OWN, _SMALLEST = "own_", "smallest_"
_RUNG = ("name", "architecture", "macs", "params")
_SPREAD = ("clients", "mean", "sd", "min", "max", "lowest")


def read_row(values: Mapping[str, Any]) -> Row | None:
    """Read a line's values; None for a kind that this version does not know.

    Raises
    ------
    Exception
        One of :data:`superfednas.common.damage.DAMAGE`, if they are no such row.
    """
    match values["kind"]:
        case "round":
            return _row(
                RoundRow,
                **_taken(values, "round", "beta", "lr", "seconds", "left_out"),
                clients=tuple(map(_client, values.get("clients", ()))),
                late=tuple(map(_late, values.get("late", ()))),
            )
        case "evaluation" | "test":
            keys = ("kind", "round", "trained_rounds", "where", "split", "metric", "clients", "of")
            return _row(
                EvaluationRow,
                **_taken(values, *keys),
                ladder=tuple(map(_rung, values.get("ladder", ()))),
            )
        case "summary":
            some = ("round", "replies", "refused", "bytes", "gmac_images", "seconds")
            return _row(
                SummaryRow,
                **_taken(values, *some, "as_assigned", "metric"),
                coverage=tuple(
                    _row(Covered, low=each["from"], high=each["to"], share=each["share"])
                    for each in values.get("coverage", ())
                ),
                spread={
                    which: _row(Spread, **_taken(found, *_SPREAD))
                    for which, found in values.get("spread", {}).items()
                },
            )
    return None


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as the JSON values of its line."""
    if isinstance(row, RoundRow):
        return {
            "kind": "round",
            **_given(row, "round", "beta", "lr"),
            "clients": [_client_json(client) for client in row.clients],
            "late": [_late_json(late) for late in row.late],
            "seconds": row.seconds,
            **({} if row.left_out is None else {"left_out": row.left_out}),
        }
    if isinstance(row, EvaluationRow):
        return {
            **_given(row, "kind", "round", "trained_rounds", "where", "split"),
            **({} if row.metric is None else {"metric": dict(row.metric)}),
            **({} if row.clients is None else _given(row, "clients", "of")),
            "ladder": [_given(rung, *_RUNG) | dict(rung.values) for rung in row.ladder],
        }
    return {
        "kind": "summary",
        **_given(row, "round", "replies"),
        "refused": dict(row.refused),
        **_given(row, "bytes", "gmac_images", "seconds"),
        "coverage": [{"from": r.low, "to": r.high, "share": r.share} for r in row.coverage],
        "as_assigned": row.as_assigned,
        **({} if row.metric is None else {"metric": dict(row.metric)}),
        "spread": {which: vars(found) for which, found in row.spread.items()},
    }


def _client(values: Mapping[str, Any]) -> ClientRow:
    some = ("client", "architecture", "macs", "params", "weight", "favoured", "bytes_down")
    more = ("bytes_up", "accepted", "reason", "verdict", "target")
    reported = ("loss", "examples", "images", "mac_images", "seconds")
    return _row(
        ClientRow,
        **_taken(values, *some, *more, *reported),
        refusal=known(values.get("refusal")),
        own=_scores(values, _OWN),
        smallest=_scores(values, _SMALLEST),
    )


def _scores(values: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    return {
        key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)
    }


def _client_json(row: ClientRow) -> dict[str, Any]:
    said = _given(row, "client", "architecture", "macs", "params", "weight", "favoured")
    said |= _given(row, "bytes_down", "bytes_up", "accepted", "refusal", "reason", "verdict")
    if row.accepted:
        said |= _given(row, "loss", "examples", "images", "mac_images", "seconds")
        for prefix, scores in ((_OWN, row.own), (_SMALLEST, row.smallest)):
            said |= {prefix + metric: value for metric, value in scores.items()}
    if row.target:
        said["target"] = row.target
    return said


def _late(values: Mapping[str, Any]) -> LateRow:
    taken = _taken(values, "client", "round", "folded", "reason", "weight")
    return _row(LateRow, **taken, refusal=known(values.get("refusal")))


def _late_json(row: LateRow) -> dict[str, Any]:
    said = _given(row, "client", "round", "folded", "refusal", "reason")
    return said if row.weight is None else said | {"weight": row.weight}


def _rung(values: Mapping[str, Any]) -> Rung:
    measured = {key: value for key, value in values.items() if key not in _RUNG}
    return _row(Rung, **_taken(values, *_RUNG), values=measured)


def _row(kind: type[Kind], /, **fields: Any) -> Kind:
    return fill(kind, fields)


def _taken(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _given(row: object, *keys: str) -> dict[str, Any]:
    return {key: getattr(row, key) for key in keys}
