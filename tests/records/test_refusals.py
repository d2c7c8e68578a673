"""Codes: every error of Flower's has one of its own, and what carries none has none."""

from hypothesis import given
from hypothesis import strategies as st

from superfednas.flower.codes import ErrorCode, OwnCode
from superfednas.records.folder import BeingWrittenError, RunFolderError
from superfednas.records.refusals import Refusal, Refused, causes_of, code_of, known, of_flower
from superfednas.server.nodes import RosterError
from superfednas.server.strategy import TrainingStalled


def test_every_error_of_flower_has_a_code_of_its_own() -> None:
    assert len({of_flower(code) for code in ErrorCode}) == len(ErrorCode)


@given(code=st.integers().filter(lambda code: code not in {*ErrorCode, *OwnCode}))
def test_an_error_of_a_later_flower_is_an_error(code: int) -> None:
    assert of_flower(code) == Refusal.FLOWER_ERROR


@given(code=st.sampled_from(Refusal), reason=st.text())
def test_a_reason_is_one_line_and_a_code_is_read_back(code: Refusal, reason: str) -> None:
    refused = Refused(code, reason)
    assert refused.reason.isprintable() and known(str(refused.code)) is code
    assert (refused.reason == reason) == reason.isprintable()


def test_what_ends_a_run_carries_its_code() -> None:
    last = [Refused(Refusal.CRASHED, "a"), Refused(Refusal.NO_REPLY, "b")] * 2
    stalled = TrainingStalled(3, last)
    assert code_of(stalled) == Refusal.STALLED
    assert causes_of(stalled) == (Refusal.CRASHED, Refusal.NO_REPLY)
    assert code_of(RosterError("few")) == Refusal.TOO_FEW_NODES
    assert issubclass(BeingWrittenError, RunFolderError)
    assert code_of(ValueError("odd")) is None and causes_of(ValueError("odd")) == ()
    assert known("of a later version") is None and known(None) is None
