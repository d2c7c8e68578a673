"""The codes are Flower's own, all of them."""

from flwr.common import constant

from superfednas.flower.codes import ErrorCode


def test_every_code_of_flower_has_its_number_here() -> None:
    theirs = {value for name, value in vars(constant.ErrorCode).items() if name.isupper()}
    assert theirs == {int(code) for code in ErrorCode}
