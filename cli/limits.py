"""Options made from costs: ``--max-NAME`` for every cost, including those of ``--costs``."""

import functools
import itertools
from collections.abc import Sequence

import click
from typer.core import TyperOption

from superfednas.cli.common import OpeningCommand
from superfednas.nas.cost.cost import COSTS, add_costs

PANEL = "Limits (in any combination)"
_OPTION = "--costs"
_KEPT = "superfednas.limits"


class LimitedCommand(OpeningCommand):
    """A verb with a limit for each cost; a user's costs are read before its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the costs that the arguments name, then parse the arguments."""
        for references in _named(args):
            add_costs(references)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the verb's own options, with the limits after the first."""
        first, *others = super().get_params(ctx)
        return [first, *map(_limit, COSTS), *others]


def limits_of(ctx: click.Context) -> dict[str, float]:
    """Return the given limits, cost name to its maximum."""
    kept: dict[str, float] = ctx.meta.get(_KEPT, {})
    return {name: kept[name] for name in COSTS if name in kept}


def _limit(name: str) -> TyperOption:
    cost = COSTS[name]
    return TyperOption(
        param_decls=[f"--max-{name}"],
        type=float,
        help=cost.help or f"{cost.title[:1].upper()}{cost.title[1:]}.",
        expose_value=False,
        callback=functools.partial(_keep, name),
        rich_help_panel=PANEL,
    )


def _keep(
    name: str, ctx: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    if value is not None:
        ctx.meta.setdefault(_KEPT, {})[name] = value
    return value


def _named(args: Sequence[str]) -> list[str]:
    """Return the values of every ``--costs``."""
    found = [after for option, after in itertools.pairwise(args) if option == _OPTION]
    return found + [arg.partition("=")[2] for arg in args if arg.startswith(f"{_OPTION}=")]
