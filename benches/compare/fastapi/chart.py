"""Draws what compare-fastapi measured: chart.py results.json out.svg

Above, for each server, how long callers waited at the largest flood of sleeping work, and what /healthz and an endpoint
that asks the database take when nothing else is done. Below, how many of the accepted tasks a signal lost. The same
results make the same file.
"""

import json
import sys

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# What was measured: its name, where it stands in a run, which number of it, its colour and its mark.
MEASURES = [
    ("a trigger, slowest", "trigger_ms", "max", "#d55e00", "D"),
    ("/healthz, p99", "healthz_ms", "p99", "#0072b2", "o"),
    ("asking the database, p99", "database_ms", "p99", "#009e73", "s"),
]
SIGNALS = [("SIGKILL", "#333333"), ("SIGTERM", "#999999")]
TICK = {"marker": "|", "markersize": 9, "markeredgewidth": 2, "linestyle": ""}
LEGEND = {"loc": "lower left", "frameon": False, "columnspacing": 1.4}
# What is faster is drawn as this: a logarithm knows no zero.
SHORTEST_MS = 0.1
# What failed stands in the results as null, and is drawn as the longest that an answer is waited for.
LONGEST_MS = 300_000
INK = "#222222"

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compare-fastapi",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


def drawn(ms):
    """Where it stands."""
    return LONGEST_MS if ms is None else max(ms, SHORTEST_MS)


def duration(ms):
    """As people say it."""
    if ms is None:
        return "failed"
    if ms >= 999_500:
        return f"{ms / 1000:.0f} s"
    if ms >= 999.5:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def of_the_flood(results):
    """The runs with the most sleeping work at once, one for each server."""
    sleeping = [run for run in results["runs"] if run["work"] == "sleep"]
    most = max(run["at_once"] for run in sleeping)
    return most, [run for run in sleeping if run["at_once"] == most]


def rows(servers, groups):
    """A height for each server, and one for each line in its group."""
    step = 0.8 / groups
    return [[server + (line - (groups - 1) / 2) * step for line in range(groups)] for server in range(servers)]


def beneath_each_other(axes, servers):
    axes.set_yticks(range(len(servers)), servers)
    axes.set_ylim(len(servers) - 0.5, -0.5)
    for between in range(1, len(servers)):
        axes.axhline(between - 0.5, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_waits(axes, runs, most):
    for run, heights in zip(runs, rows(len(runs), len(MEASURES))):
        for (_, member, number, colour, mark), y in zip(MEASURES, heights):
            value = drawn(run[member][number])
            beyond = value
            if member in run["idle"]:
                idle = drawn(run["idle"][member][number])
                beyond = max(idle, value)
                axes.plot([idle, value], [y, y], color=colour, linewidth=1.5, alpha=0.5)
                axes.plot([idle], [y], **TICK, color=colour)
            axes.plot([value], [y], marker=mark, markersize=6, color=colour)
            label = duration(run[member][number])
            axes.annotate(label, (beyond, y), (7, 0), textcoords="offset points", va="center")
    for name, _, _, colour, mark in MEASURES:
        axes.plot([], [], marker=mark, linestyle="", color=colour, label=name)
    axes.plot([], [], **TICK, color="#555555", label="the same, idle, p99")
    axes.set_xscale("log")
    numbers = [v for run in runs for v in waits(run)]
    axes.set_xlim(min(numbers) / 1.6, max(numbers) * 4)
    axes.xaxis.set_major_locator(FixedLocator([10**n for n in range(-1, 7)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: duration(ms)))
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_title(f"{most} heavy tasks at once: how long callers wait (logarithmic)", loc="left", pad=34)
    axes.legend(bbox_to_anchor=(-0.01, 1.0), ncols=4, handletextpad=0.3, **LEGEND)
    beneath_each_other(axes, [run["server"] for run in runs])


def waits(run):
    """Every number of a run that is drawn."""
    for _, member, number, _, _ in MEASURES:
        yield drawn(run[member][number])
        if member in run["idle"]:
            yield drawn(run["idle"][member][number])


def draw_losses(axes, kills, servers):
    heights = dict(zip(servers, rows(len(servers), len(SIGNALS))))
    most = max(kill["accepted"] for kill in kills) or 1
    for line, (signal, colour) in enumerate(SIGNALS):
        told = [kill for kill in kills if kill["signal"] == signal]
        at = [heights[kill["server"]][line] for kill in told]
        axes.barh(at, [kill["lost"] for kill in told], height=0.32, color=colour, label=signal)
        for kill, y in zip(told, at):
            label = f"{kill['lost']} of {kill['accepted']}"
            axes.annotate(label, (kill["lost"], y), (5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, most * 1.12)
    axes.xaxis.set_major_locator(FixedLocator([0, most / 2, most]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_title("accepted tasks lost by a signal", loc="left", pad=20)
    axes.legend(bbox_to_anchor=(-0.01, 0.98), ncols=2, handletextpad=0.5, **LEGEND)
    beneath_each_other(axes, servers)


def draw(results, out):
    most, runs = of_the_flood(results)
    kills = results["kills"]
    killed = list(dict.fromkeys(kill["server"] for kill in kills))
    tall = [len(runs) * 0.75 + 0.4, len(killed) * 0.42 + 0.4]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, sum(tall) + 1.6), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=tall)
        figure.get_layout_engine().set(hspace=0.08)
        draw_waits(above, runs, most)
        draw_losses(below, kills, killed)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: chart.py results.json out.svg")
    with open(sys.argv[1], encoding="utf-8") as file:
        results = json.load(file)
    draw(results, sys.argv[2])


if __name__ == "__main__":
    main()
