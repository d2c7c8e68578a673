"""Texts that a stranger may send, and what none of them may do to a terminal or a log."""

import unicodedata

from hypothesis import strategies as st

CONTROLS = "".join(map(chr, [*range(32), *range(127, 160)])) + "\u2028\u2029\u200b\u200f\ufeff"
OVERRIDES = "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
_PIECES = (
    *("[red]", "[/red]", "[link=https://x.example]", "[/]", "[bold", ":bug:", "\\[red]"),
    *("\x1b[2J", "\x1b]8;;https://x.example\x07", "\r", "\n", "\r\n", "\x85", "\ud800", "<script>"),
    *("run folder: /elsewhere", 'superfednas: {"event": "finished"}', '"', "\\", "ü", "字"),
)
HOSTILE = st.lists(
    st.sampled_from(_PIECES) | st.text(st.sampled_from(CONTROLS + OVERRIDES)) | st.text(max_size=9),
    max_size=6,
).map("".join)


def assert_harmless(text: str) -> None:
    """Check that lines do nothing to a terminal but stand on it (tabs, between cells, may)."""
    kinds = {char: unicodedata.category(char) for char in set(text) - {"\n", "\t"}}
    assert not {c: k for c, k in kinds.items() if k in ("Cc", "Cf", "Cs", "Zl", "Zp")}
