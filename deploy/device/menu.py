"""The menu of an elastic file: the subnets to switch between, by name and by limits."""

from collections.abc import Iterable, Mapping
from typing import Any

from superfednas.common.damage import fits
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.nas.cost.cost import COSTS
from superfednas.nas.plan import Plan
from superfednas.supernet import Architecture, SearchSpace

_NOT_COSTS = ("architecture", "name", "score")


def menu_entry(
    space: SearchSpace,
    arch: Architecture,
    *,
    name: str = "",
    score: float | None = None,
    costs: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return a subnet's entry in a card's menu.

    Parameters
    ----------
    space, arch
        The subnet.
    name
        Its name, if it has one.
    score
        How good it is, the more the better, if that is known.
    costs
        Further costs by name, such as latency, besides those that the architecture alone
        determines.
    """
    told = {each.name: each.of(space, arch) for each in COSTS.values() if each.told}
    named = {"name": name} if name else {}
    return {"architecture": arch.to_json(), **named, **(costs or {}), **told, "score": score}


def ladder_menu(
    space: SearchSpace, rungs: Mapping[str, Architecture]
) -> tuple[dict[str, Any], ...]:
    """Return the menu of a ladder, each subnet once."""
    names = {arch: name for name, arch in rungs.items()}
    return tuple(menu_entry(space, arch, name=name) for arch, name in names.items())


def plan_menu(space: SearchSpace, plan: Plan) -> tuple[dict[str, Any], ...]:
    """Return the menu of a plan: its ladder, its front and the chosen subnet, each once.

    A plan's scores may be values of a metric of which less is better: a menu holds their negatives.
    """
    metric = plan.scorer.get("metric")
    less = isinstance(metric, Mapping) and metric.get("better") == "less"
    sign = -1 if less else 1
    names = {e.text: e.name for e in (*plan.front, plan.chosen, *plan.ladder)}
    entries = {e.text: e for e in (*plan.ladder, *plan.front, plan.chosen)}
    return tuple(
        menu_entry(
            space,
            space.parse(text),
            name=names[text],
            score=None if e.score is None else sign * e.score,
            costs=e.costs,
        )
        for text, e in entries.items()
    )


class Menu:
    """Subnets that a file offers.

    Parameters
    ----------
    space
        The search space.
    entries
        A card's ``menu``.

    Raises
    ------
    DeployError
        If the costs of an entry are not those of its architecture.
    """

    def __init__(self, space: SearchSpace, entries: Iterable[Mapping[str, Any]]) -> None:
        self.entries: dict[Architecture, Mapping[str, Any]] = {}
        self._names: dict[str, Architecture] = {}
        for entry in entries:
            arch = space.parse(entry["architecture"])
            for what, cost in (("macs", space.macs(arch)), ("params", space.params(arch))):
                if entry.get(what) != cost:
                    raise DeployError(
                        f"menu: {arch.to_json()} has {what} = {cost}, not {entry.get(what)!r}"
                    )
            costs = {key: value for key, value in entry.items() if key not in _NOT_COSTS}
            if not (
                fits(costs, Mapping[str, float])
                and fits(entry.get("score"), float | None)
                and fits(entry.get("name", ""), str)
            ):
                raise DeployError(f"menu: an entry is damaged: {entry!s:.200}")
            self.entries[arch] = entry
            if entry.get("name"):
                self._names[entry["name"]] = arch

    def named(self, name: str) -> Architecture | None:
        """Return the subnet of this name; None if there is none."""
        return self._names.get(name)

    def best(self, limits: Mapping[str, float]) -> Architecture:
        """Return the best subnet within limits.

        The one with the highest score or, if none within the limits has a score, with the most
        MACs.

        Parameters
        ----------
        limits
            Cost to its maximum.

        Raises
        ------
        DeployError
            If nothing keeps the limits (the message says what comes nearest), or the menu lacks one
            of the costs.
        """
        if not self.entries:
            raise DeployError("the menu of this file is empty: name an architecture")
        self._check_costs(limits)
        fits = {
            arch: entry
            for arch, entry in self.entries.items()
            if all(entry[what] <= limit for what, limit in limits.items())
        }
        if not fits:
            nearest = min(
                self.entries.values(),
                key=lambda entry: max(entry[what] / max(limits[what], 1) for what in limits),
            )
            wanted = " and ".join(f"max_{what} = {limit:,.12g}" for what, limit in limits.items())
            found = " and ".join(f"{nearest[what]:,.12g} {what}" for what in limits)
            raise DeployError(f"no subnet of the menu keeps {wanted}: the nearest has {found}")
        scored = {arch: entry for arch, entry in fits.items() if entry.get("score") is not None}
        if scored:  # the cheaper one at equal scores
            return max(scored, key=lambda arch: (scored[arch]["score"], -scored[arch]["macs"]))
        return max(fits, key=lambda arch: int(fits[arch]["macs"]))

    def _check_costs(self, limits: Mapping[str, float]) -> None:
        every = [set(entry).difference(_NOT_COSTS) for entry in self.entries.values()]
        known = sorted(set.intersection(*every))
        for what in limits:
            if what not in known:
                raise DeployError(
                    f"max_{what}: the menu of this file has no {what}; it has {', '.join(known)}"
                )
