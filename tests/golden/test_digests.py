"""Golden digests: short runs of every method end in the bits that stand in tests/golden.

``pytest -m golden`` runs every method with every norm, wire format and partition. After a change
that is meant to change results, ``python -m tests.golden.record`` writes the file anew.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import superfednas
from tests.golden import cases
from tests.golden.cases import (
    FEW,
    MANY,
    PLAIN,
    PRODUCT,
    REFUSED,
    Case,
    Machine,
    Outcome,
    Rung,
    differences,
    digest_of,
    run_case,
)

pytestmark = pytest.mark.slow

WRITTEN_ON, WRITTEN = cases.read()


@pytest.fixture(scope="module")
def exact() -> bool:
    """Whether this machine rounds as the one that the file was written on."""
    if Machine.here() == WRITTEN_ON:
        return True
    warnings.warn(
        f"the golden digests are of another machine ({WRITTEN_ON}; this is {Machine.here()}): "
        "each method is run twice here and must end in the same bits, and accuracies and losses "
        "are compared with the file's roughly",
        stacklevel=1,
    )
    return False


@pytest.mark.parametrize(
    "case",
    [*FEW, *(pytest.param(case, marks=pytest.mark.golden) for case in MANY)],
    ids=lambda case: case.name.replace(" ", "-"),
)
def test_a_run_ends_as_it_did(case: Case, exact: bool, tmp_path: Path) -> None:
    found = run_case(case, tmp_path / "run")
    differing = differences(case.name, WRITTEN[case.name], found, exact=exact)
    assert not differing, "\n".join(differing)
    if not exact and case in PLAIN:
        again = run_case(case, tmp_path / "again")
        differing = differences(case.name, found, again, exact=True)
        assert not differing, "\n".join(differing)


def test_the_file_holds_every_case_and_no_two_alike() -> None:
    assert list(WRITTEN) == [case.name for case in (*FEW, *MANY)]
    digests = [WRITTEN[case.name].digest for case in PRODUCT]
    assert len(set(digests)) == len(PRODUCT) and REFUSED not in digests
    refused = [case for case in FEW if WRITTEN[case.name].digest == REFUSED]
    assert len(refused) < len(FEW) / 2


def test_another_seed_ends_otherwise(tmp_path: Path) -> None:
    case = PLAIN[0]
    found = run_case(replace(case, seed=1), tmp_path / "run")
    for exact in (True, False):
        assert differences(case.name, WRITTEN[case.name], found, exact=exact)


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run_case(PLAIN[-1], tmp_path / "two")
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert found == run_case(PLAIN[-1], tmp_path / "one")
    finally:
        torch.set_num_threads(before)


def test_a_run_that_fails_was_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run_dir: str, **settings: Any) -> None:
        Path(run_dir).mkdir()
        raise ValueError("midway")

    monkeypatch.setattr(superfednas, "train", fail)
    with pytest.raises(ValueError, match="midway"):
        run_case(PLAIN[0], tmp_path / "run")


def test_a_digest_is_of_names_types_shapes_and_bits() -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(1)}
    digest = digest_of(save(tensors))
    assert digest == digest_of(save(dict(reversed(tensors.items())), {"rounds": "3"}))
    one_bit = tensors["b"].clone()
    one_bit.view(torch.int32)[1, 2] ^= 1
    others = [
        {"b": one_bit, "a": tensors["a"]},
        {"b": tensors["b"].view(3, 2), "a": tensors["a"]},
        {"b": tensors["b"].view(torch.int32), "a": tensors["a"]},
        {"c": tensors["b"], "a": tensors["a"]},
        {"b": tensors["b"]},
    ]
    assert len({digest, *(digest_of(save(other)) for other in others)}) == 1 + len(others)


SMALL, LARGE = Rung("small", 10, 5, 1000, 200, 2.0), Rung("large", 20, 9, 1000, 300, 1.5)
KEPT = Outcome("0a", (SMALL, LARGE))


def with_small(**changed: Any) -> Outcome:
    return Outcome("0b", (replace(SMALL, **changed), LARGE))


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_the_same_does_not_differ(exact: bool) -> None:
    assert differences("maxnet", KEPT, KEPT, exact=exact) == []
    assert differences("maxnet", Outcome(REFUSED), Outcome(REFUSED), exact=exact) == []


def test_a_difference_names_the_case_and_both_digests() -> None:
    said = differences("maxnet", KEPT, replace(KEPT, digest="0b"), exact=True)
    assert said == ["maxnet: digest 0b in place of 0a"]
    (digest, rung) = differences("maxnet", KEPT, with_small(right=201), exact=True)
    assert digest == "maxnet: digest 0b in place of 0a"
    assert rung.startswith("maxnet: Rung(name='small'") and "right=201" in rung


@pytest.mark.parametrize("exact", [True, False])
def test_refused_and_trained_differ(exact: bool) -> None:
    refused = Outcome(REFUSED)
    said = differences("fjord", refused, KEPT, exact=exact)
    assert said == ["fjord: digest 0a in place of refused"]
    said = differences("fjord", KEPT, refused, exact=exact)
    assert said == ["fjord: digest refused in place of 0a"]


def test_rounding_alone_may_differ_on_another_machine() -> None:
    near: list[dict[str, Any]] = [{}, {"right": 209}, {"right": 191}, {"loss": 2.0019}]
    far: list[dict[str, Any]] = [
        *(
            {"right": 212},
            {"right": 188},
            {"loss": 2.0021},
            {"loss": 1.9979},
            {"loss": float("nan")},
        ),
        *({"name": "width .25"}, {"macs": 11}, {"params": 6}, {"examples": 999}),
    ]
    for changed in near:
        assert not differences("maxnet", KEPT, with_small(**changed), exact=False), changed
        assert differences("maxnet", KEPT, with_small(**changed), exact=True)
    for changed in far:
        assert len(differences("maxnet", KEPT, with_small(**changed), exact=False)) == 1, changed
    fewer = Outcome("0b", (LARGE,))
    assert len(differences("maxnet", KEPT, fewer, exact=False)) == 1


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file, outcomes = tmp_path / "digests.json", {"maxnet": KEPT, "fjord": Outcome(REFUSED)}
    cases.write(outcomes, file)
    assert cases.read(file) == (Machine.here(), outcomes)
