"""FjORD: ordered dropout, every step a width of those up to the client's own."""

from server.methods.heterofl import METHOD as HETEROFL
from server.methods.method import Method

METHOD = Method(
    name="fjord",
    source="arXiv 2102.13451",
    sends="as HeteroFL",
    trains="one width a step, drawn from the levels up to its own",
    averages="what overlaps, by images",
    settings={**HETEROFL.settings, "weighting": "examples", "local-subnets": "widths"},
)
