"""The page: one self-contained HTML file without scripts."""

from collections.abc import Sequence

from superfednas.common.settings import flatten
from superfednas.report.markup import definitions, image, table, text_of
from superfednas.report.tables import (
    Story,
    client_lines,
    facts,
    ladder_caption,
    ladder_table,
    refusal_lines,
    status,
    upper_first,
)
from superfednas.server.journal.evaluation import hardly_trained
from superfednas.server.journal.summary import sentences

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2127; --muted: #5b6570;
  --line: #dde1e6; --band: #f5f7f9; --mark: #0072b2; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e8ec; --muted: #9aa4af; --line: #2f363e; --band: #1c2026;
    --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
h3 { margin: 2rem 0 .75rem; font-size: 1rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.status { color: var(--muted); }
.status.open { border-left: .25rem solid var(--mark); padding-left: .75rem; color: var(--ink); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { padding: .3rem .75rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: .25rem; overflow-wrap: anywhere;
  min-width: 6rem; }
td + td { white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
details { margin-top: 2.5rem; }
summary { cursor: pointer; font-weight: 600; }
details dl { margin-top: .75rem; font: .85rem/1.45 ui-monospace, monospace; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
}
@page { margin: 18mm; }
"""


def page(
    story: Story,
    rounds: tuple[bytes, bytes],
    macs: tuple[bytes, bytes],
    after: Sequence[str] = (),
) -> bytes:
    """Return the page.

    Parameters
    ----------
    story
        The run.
    rounds, macs
        The plots as PNG, each for light and for dark paper.
    after
        HTML sections on what was done after training.
    """
    title = f"{story.title} – run report"
    metric = upper_first(story.metric.name)
    body = [
        f"<h1>{text_of(story.title)}</h1>",
        f'<p class="status{"" if story.finished else " open"}">{text_of(status(story))}</p>',
        *_result(story),
        f"<h2>{text_of(metric)} over rounds</h2>",
        image(rounds, f"{metric} of each subnet of the ladder over rounds, and β below"),
        f"<h2>{text_of(metric)} against MACs</h2>",
        image(macs, f"{metric} of the ladder against multiply-accumulates"),
        *_coverage(story),
        *after,
        "<h2>The run</h2>",
        definitions(facts(story)),
        *_clients(story),
        *_refusals(story),
        "<details><summary>All settings</summary>",
        definitions([(key, str(value)) for key, value in flatten(story.settings).items()]),
        "</details>",
    ]
    html = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text_of(title)}</title>",
            f"<style>{_STYLE}</style></head>",
            "<body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )
    # Half a surrogate pair in an untrusted text is legal JSON but cannot be encoded.
    return html.encode("utf-8", "replace")


def _result(story: Story) -> list[str]:
    said = [] if story.summary is None else sentences(story.summary)
    parts = [f"<p>{text_of(sentence)}</p>" for sentence in said]
    if story.last is None:
        return [*parts, "<p>The ladder has not been evaluated yet.</p>"]
    caption = upper_first(ladder_caption(story, story.last))
    return ["<h2>Result</h2>", table(*ladder_table(story, story.last), caption), *parts]


def _coverage(story: Story) -> list[str]:
    if story.summary is None:
        return ["<p>What share of the assignments each range of MACs got is told at the end.</p>"]
    least, most = story.end_shares
    own = story.settings.subnets
    if own.drawn:
        return [
            f"<p>Every step trained {own.subnets_per_step} subnets of the one that a client was "
            f"assigned (local-subnets {own.local_subnets}, distillation {own.distil}); the lower "
            "panel shows the assigned ones.</p>"
        ]
    said = (
        f"The smallest subnet got {least:.1%} of the assignments, the largest {most:.1%}; the "
        "lower panel shows how the others spread between the two."
    )
    if hardly_trained(story.summary):
        said += (
            f" Grey ranges got hardly any: the {text_of(story.metric.name)} of a subnet there "
            "rests on weights that other subnets trained."
        )
    return [f"<p>{said}</p>"]


def _clients(story: Story) -> list[str]:
    if not story.rounds:
        return []
    own, macs = f"own {story.metric.name}", f"mean {story.prefix.letter}MACs"
    headings = ["client", "chosen", macs, "accepted", "refused", own, "bytes"]
    caption = (
        f"{upper_first(own)}: of the subnet that the client was assigned, on its own validation "
        f"{story.examples}, when it was last asked"
    )
    return ["<h2>Clients</h2>", table(headings, client_lines(story), caption)]


def _refusals(story: Story) -> list[str]:
    lines = refusal_lines(story.rounds)
    if not lines:
        return ["<p>No reply was refused.</p>"] if story.rounds else []
    headings = ["reason", "replies", "clients", "last in round"]
    return ["<h2>Refused replies</h2>", table(headings, lines)]
