"""The report: files, a page that needs nothing else, strangers' texts, runs that have not ended."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from superfednas.common.settings import flatten
from superfednas.common.words import amount
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.report import write_report
from superfednas.server.journal.summary import sentences
from superfednas.server.settings import Settings
from tests.support.rows import row_of

Row = dict[str, Any]
LEAST, MOST = 1_000_000, 11_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def client(name: str, macs: int, *, reason: str | None = None, own: float | None = None) -> Row:
    accepted = reason is None
    row: Row = {
        "client": name,
        "architecture": "{}",
        "macs": macs,
        "params": macs // 2,
        "weight": 0.5,
        "favoured": macs == MOST,
        "bytes_down": 1000,
        "bytes_up": 500 if accepted else 0,
        "accepted": accepted,
        "reason": reason,
    }
    if accepted:
        row |= {"loss": 1.5, "examples": 20, "images": 40, "seconds": 0.1}
        row |= {"own_accuracy": own, "smallest_accuracy": own}
    return row


def round_row(number: int, *clients: Row, beta: float | None = 0.5) -> Row:
    row = {"kind": "round", "round": number, "beta": beta, "lr": 0.1, "seconds": 2.0}
    return row | {"clients": list(clients)}


def ladder_row(kind: str, number: int, accuracies: dict[str, float], where: str = "server") -> Row:
    step = (MOST - LEAST) // max(1, len(accuracies) - 2)
    return {
        "kind": kind,
        "round": number,
        "trained_rounds": number,
        "where": where,
        "split": "test" if kind == "test" else "validation",
        "ladder": [
            {
                "name": name,
                "architecture": "{}",
                "macs": 4_000_000 if name.startswith("random") else LEAST + index * step,
                "params": 1234,
                "accuracy": accuracy,
                "loss": 1.0,
                "examples": 300,
            }
            for index, (name, accuracy) in enumerate(accuracies.items())
        ],
    }


def summary_row(rounds: int, refused: dict[str, int]) -> Row:
    step = (MOST - LEAST) // 10
    return {
        "kind": "summary",
        "round": rounds,
        "replies": 5,
        "refused": refused,
        "bytes": 9000,
        "gmac_images": 12.3,
        "seconds": 4.0,
        "coverage": [
            {"from": LEAST + i * step, "to": LEAST + (i + 1) * step, "share": 0.1 * (i < 5)}
            for i in range(10)
        ],
        "spread": {
            "own": {"clients": 2, "mean": 0.5, "sd": 0.1, "min": 0.4, "max": 0.6, "lowest": "<7>"}
        },
    }


FIRST = {"smallest": 0.31, "50%": 0.42, "largest": 0.55, "random:0": 0.4}
LAST = {"smallest": 0.6789, "50%": 0.7123, "largest": 0.8056, "random:0": 0.6501}
ROUNDS = [
    round_row(1, client("10", LEAST), client("9", MOST, own=0.875)),
    round_row(2, client("9", LEAST), client("a", MOST, reason="no reply"), beta=0.2),
]


def run_of(path: Path, *rows: Row, finished: bool = False, **settings: Any) -> RunFolder:
    given = {key.replace("_", "-"): value for key, value in settings.items()}
    values = flatten(Settings()) | {"rounds": 60, "beta-end": 0.25, "beta-share": 0.5} | given
    run = RunFolder.create(str(path / "run"), values, "resnet-tiny")
    for row in rows:
        run.append(row_of(row))
    if finished:
        run.info["status"] = "finished"
        run.save_info()
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    ends = [ladder_row("test", 2, LAST), summary_row(2, {"no reply": 1})]
    evaluations = [ladder_row("evaluation", n, FIRST) for n in (1, 2)]
    rows = [ROUNDS[0], evaluations[0], ROUNDS[1], evaluations[1], *ends]
    run = run_of(tmp_path_factory.mktemp("finished"), *rows, finished=True, rounds=2)
    return run, write_report(run)


class Page(HTMLParser):
    """Tables as lists of cells, the text, and every tag with its attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in_cell = False
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> list[list[str]]:
        """Return the lines under the heading whose first cell is ``first``."""
        return next(table[1:] for table in self.tables if table[0][0] == first)


def test_a_finished_run_gives_two_plots_and_a_page(finished):
    run, files = finished
    assert files == {
        "html": run.path / "report" / "report.html",
        "rounds": run.path / "report" / "accuracy-over-rounds.png",
        "macs": run.path / "report" / "accuracy-against-macs.png",
    }
    assert {path.name for path in (run.path / "report").iterdir()} == {
        path.name for path in files.values()
    }
    for key in ("rounds", "macs"):
        assert files[key].read_bytes().startswith(PNG)
    assert files["html"].read_text().startswith("<!doctype html>")


def test_out_is_another_folder_and_the_same_rows_give_the_same_bytes(finished, tmp_path):
    run, first = finished
    again = write_report(run, tmp_path / "deep" / "er")
    assert {path.parent for path in again.values()} == {tmp_path / "deep" / "er"}
    for key, path in first.items():
        assert again[key].read_bytes() == path.read_bytes()


def test_the_page_needs_nothing_from_elsewhere(finished):
    page = Page(finished[1]["html"])
    assert "http" not in page.source
    assert "url(" not in page.source
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = re.findall(r'\bsrc(?:set)?="([^"]*)"', page.source)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source


def test_the_figures_are_those_of_the_rows(finished):
    run, files = finished
    page = Page(files["html"])
    rungs = page.table("subnet")
    assert {line[0]: line[3] for line in rungs} == {k: f"{v:.2%}" for k, v in LAST.items()}
    assert rungs[2] == ["largest", "11.00", "1,234", "80.56%", "1.000", "300"]
    # name, chosen, mean MMACs, accepted, refused, own accuracy, bytes; numbers by value
    assert page.table("client") == [
        ["9", "2", "6.00", "2", "0", "87.5%", amount(3000)],
        ["10", "1", "1.00", "1", "0", "–", amount(1500)],
        ["a", "1", "11.00", "0", "1", "–", amount(1000)],
    ]
    assert page.table("reason") == [["no reply", "1", "1", "2"]]
    for sentence in sentences(run.rows()[-1]):
        assert sentence in page.text
    assert "Finished after round 2." in page.text
    assert "The smallest subnet got 50.0% of the assignments, the largest 50.0%" in page.text
    assert "Grey ranges" in page.text
    assert "to 0.25 over 50% of the rounds" in page.text


def test_texts_of_strangers_are_only_text(tmp_path):
    hostile = ["<script>alert(1)</script>", "\"><img src=x onerror='a'>", "&lt;"]
    clients = [client(text, LEAST) for text in hostile]
    refused = [client("b", MOST, reason=text) for text in hostile]
    end = summary_row(1, dict.fromkeys(hostile, 1))
    end["spread"]["own"]["lowest"] = hostile[0]
    names = {"dataset": hostile[0], "space": hostile[1]}
    run = run_of(tmp_path, round_row(1, *clients, *refused), end, finished=True, **names)
    page = Page(write_report(run)["html"])
    assert not any(tag == "script" or "onerror" in attrs for tag, attrs in page.tags)
    assert [attrs["src"][:5] for tag, attrs in page.tags if tag == "img"] == ["data:"] * 2
    assert {line[0] for line in page.table("reason")} == set(hostile)
    assert {line[0] for line in page.table("client")} == {*hostile, "b"}
    assert sentences(row_of(end))[1] in page.text
    assert f"{hostile[1]} on {hostile[0]}" in page.text


def test_names_that_cannot_be_written_or_counted_do_no_harm(tmp_path):
    names = ["\ud800", "²", "9" * 5000, "\u202eevil", "$\\frac{", ""]
    rows = [round_row(1, *(client(name, LEAST) for name in names))]
    run = run_of(tmp_path, *rows, ladder_row("evaluation", 1, FIRST), dataset="$x_{.npz")
    page = Page(write_report(run)["html"])
    assert len(page.table("client")) == len(names)


def test_a_run_without_a_round_says_so(tmp_path):
    files = write_report(run_of(tmp_path))
    page = Page(files["html"])
    assert "Not finished: no round has ended yet, 60 are to come." in page.text
    assert "The ladder has not been evaluated yet." in page.text
    assert page.tables == []
    assert files["rounds"].read_bytes().startswith(PNG)
    assert files["macs"].read_bytes().startswith(PNG)


def test_a_run_without_an_evaluation(tmp_path):
    page = Page(write_report(run_of(tmp_path, *ROUNDS))["html"])
    assert "Not finished: 2 of 60 rounds are done" in page.text
    assert "The ladder has not been evaluated yet." in page.text
    assert len(page.table("client")) == 3


def test_a_run_without_test_shows_its_last_evaluation(tmp_path):
    evaluations = [ladder_row("evaluation", 1, FIRST), ladder_row("evaluation", 2, LAST)]
    page = Page(write_report(run_of(tmp_path, *ROUNDS, *evaluations))["html"])
    assert page.table("subnet")[0][3] == "67.89%"
    assert "Validation accuracy after round 2, measured on the server" in page.text
    assert "told at the end" in page.text


def test_a_finished_run_that_was_never_evaluated(tmp_path):
    end = summary_row(2, {})
    page = Page(write_report(run_of(tmp_path, *ROUNDS, end, finished=True))["html"])
    assert "Finished after round 60." in page.text
    assert "The ladder has not been evaluated yet." in page.text


def test_ladders_of_clients_that_miss_rungs_and_have_no_beta(tmp_path):
    """Clients score what fits inside their own subnet, and overlap averaging has no β."""
    rows = [
        round_row(1, client("0", LEAST), beta=None),
        ladder_row("evaluation", 1, {"smallest": 0.3}, where="clients"),
        round_row(2, client("0", LEAST), beta=None),
        ladder_row("evaluation", 2, {"random:0": 0.4}, where="clients"),
    ]
    run = run_of(tmp_path, *rows, averaging="overlap", dataset="none")
    page = Page(write_report(run)["html"])
    assert [line[0] for line in page.table("subnet")] == ["random:0"]
    assert "resnet-tiny on the clients’ data" in page.text
    assert "measured by the clients on their own images" in page.text


def test_a_long_ladder_and_a_space_of_one_size(tmp_path):
    long = {f"step {i}": 0.5 + i / 200 for i in range(40)} | {"random:0": 0.9}
    end = summary_row(1, {})
    for entry in end["coverage"]:
        entry |= {"from": LEAST, "to": LEAST, "share": 0.0}
    run = run_of(tmp_path, ROUNDS[0], ladder_row("evaluation", 1, long), end, finished=True)
    assert len(Page(write_report(run)["html"]).table("subnet")) == 41


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path):
    run = run_of(tmp_path, *ROUNDS)
    metrics = run.path / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"kind": "rou')
    assert "2 of 60 rounds" in Page(write_report(run)["html"]).text
    metrics.write_text("torn\n" + whole)
    with pytest.raises(RunFolderError, match="line 1 is damaged"):
        write_report(run)


@pytest.mark.slow
def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, report; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
