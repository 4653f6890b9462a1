"""The cache report as one figure; needs matplotlib, imported only when drawing.

Colours are Okabe and Ito's, distinguishable with colour-blindness; curves also differ in
line and marker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckv_export.cache.occupancy import PoolOccupancy
from ckv_export.cache.report import CacheReport
from ckv_export.cache.sizes import CacheSizes, Comparison
from ckv_export.cache.spectrum import Spectrum
from ckv_export.cache.units import byte_unit, bytes_text, count_text, percent_text
from ckv_export.errors import InputError, MissingDependency

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"
SERVERS = {"compact": "CollectiveKV", "full_fp16": "full fp16", "full_fp32": "full fp32"}
Panel = Callable[[Any], None]


def plot_report(report: CacheReport, path: str | Path, *, layer: int = 0) -> Path:
    """Draw the report into `path` (.png, .svg or .pdf; 1200 pixels wide) and return it.

    Bytes per user always; spectra of K and V and pool use where `report` has them for
    `layer`. Overwrites `path`. Raises `InputError` on another ending or a missing folder,
    `MissingDependency` without matplotlib.
    """
    target = Path(path)
    check_plot(target)
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels(report, layer)
    rows = (len(panels) + 1) // 2
    # Figure, not pyplot: no display, no global state. A fixed salt keeps SVG files comparable.
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "ckv"}):
        figure: Any = Figure(figsize=(12, 0.7 + 3.9 * rows), dpi=100, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        _draw(figure, panels, rows)
        figure.suptitle(_title(report), fontsize=12)
        dated = target.suffix.lower() == ".svg"
        figure.savefig(target, metadata={"Date": None} if dated else None)
    return target


def check_plot(path: Path) -> None:
    """Raise what `plot_report` would for this path: told before there is what to draw."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a plot must end in {', '.join(FORMATS)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} of the plot is not there: create it")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependency("matplotlib", "Drawing the cache report", "plot") from error


def _panels(report: CacheReport, layer: int) -> list[Panel]:
    panels: list[Panel] = []
    for spectrum in report.spectrum or ():
        if spectrum.layer == layer:
            panels.append(lambda axes, s=spectrum: _spectrum(axes, s))  # type: ignore[misc]
    uses = [use for use in report.occupancy or () if use.layer == layer]
    if uses:
        panels.append(lambda axes: _occupancy(axes, uses))
    panels.append(lambda axes: _sizes(axes, report.sizes))
    return panels


def _draw(figure: Any, panels: Sequence[Panel], rows: int) -> None:
    grid = figure.add_gridspec(rows, 2)
    for number, panel in enumerate(panels):
        alone = number % 2 == 0 and number == len(panels) - 1
        axes = figure.add_subplot(grid[number // 2, slice(None) if alone else number % 2])
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
        panel(axes)


def _title(report: CacheReport) -> str:
    layers = report.sizes.full[0].layers
    model = report.sizes.kind + (f", {layers} layers" if layers > 1 else "")
    events = f" (events: {report.events or 'unknown'})"
    measured = report.occupancy or report.spectrum
    return f"{model}: what the CollectiveKV cache costs and holds{events if measured else ''}"


def _spectrum(axes: Any, spectrum: Spectrum) -> None:
    ranks = range(1, spectrum.d + 1)
    cumulative = [100 * c for c in spectrum.cumulative]
    axes.plot(ranks, cumulative, color=BLUE, label="all users, their common basis")
    if spectrum.shared is not None:
        basis = spectrum.shared
        for label, shares, colour, style in (
            ("half the users, basis of the other half", basis.shared, ORANGE, "o--"),
            ("half the users, each one's own basis", basis.own, GREEN, "s:"),
        ):
            percents = [100 * s for s in shares]
            axes.plot(basis.ranks, percents, style, color=colour, markersize=4, label=label)
    axes.axhline(90, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda rank, _: f"{rank:.0f}")
    axes.set(ylim=(0, 103), xlabel="dimensions kept (r)", ylabel="energy captured (%)")
    axes.set_title(
        f"{spectrum.side.upper()}, layer {spectrum.layer}: 90% of the energy in "
        f"{spectrum.rank_90} of {spectrum.d} dimensions"
    )
    axes.legend(loc="lower right", frameon=False)


def _occupancy(axes: Any, uses: Sequence[PoolOccupancy]) -> None:
    for use, colour, style in zip(uses, (BLUE, ORANGE), ("-", "--"), strict=False):
        counts = use.sorted_counts[use.sorted_counts > 0]
        edges = [100 * n / use.rows for n in range(len(counts) + 1)]
        name = (
            f"{use.side.upper()}: {count_text(use.rows_used)} of {count_text(use.rows)} rows used"
        )
        axes.stairs(counts, edges, baseline=None, color=colour, ls=style, linewidth=1.5, label=name)
        if use.events:
            axes.axhline(use.events / use.rows, color=GREY, linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda events, _: f"{events:,g}")
    axes.set(xlim=(0, 100), xlabel="pool rows, most used first (% of the pool)")
    axes.set(ylabel="events per row")
    axes.set_title(f"Pool use, layer {uses[0].layer}: {count_text(uses[0].events)} events")
    axes.legend(loc="upper right", frameon=False, title="grey: evenly spread")


def _sizes(axes: Any, sizes: CacheSizes) -> None:
    places: dict[float, str] = {}
    for group, comparison in enumerate(sizes.comparisons):
        top = 4.3 * group
        beside = "" if comparison.extras == "none" else " (history hatched)"
        axes.text(0, top, f" {comparison.label}{beside}", va="center", fontsize=9, style="italic")
        for place, (field, name) in enumerate(SERVERS.items(), start=1):
            cache, size = getattr(sizes.comparisons[0], field), getattr(comparison, field)
            _bar(axes, top + place, cache, size - cache, BLUE if place == 1 else ORANGE)
            axes.text(size, top + place, _bar_text(comparison, field), va="center", fontsize=9)
            places[top + place] = name
    axes.set_yticks(list(places), list(places.values()))
    axes.set_ylim(max(places) + 0.7, -0.7)
    _byte_axis(axes, max(1, *(c.full_fp32 for c in sizes.comparisons)))
    axes.set_title(f"Bytes per user, {sizes.user_dtype} user parts")


def _byte_axis(axes: Any, widest: int) -> None:
    unit, bytes_each = byte_unit(widest)
    axes.set_xlim(0, 1.5 * widest)  # room for the text beside the longest bar
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda size, _: f"{size / bytes_each:g}")
    axes.set_xlabel(f"{unit} per user (units of 1000)")


def _bar(axes: Any, place: float, cache: int, history: int, colour: str) -> None:
    axes.barh(place, cache, color=colour)
    if history:
        axes.barh(place, history, left=cache, color=GREY, hatch="///", edgecolor="white")


def _bar_text(comparison: Comparison, field: str) -> str:
    size = f" {bytes_text(getattr(comparison, field))}"
    if field != "compact":
        return size
    return f"{size}: {percent_text(comparison.ratio_fp32)} of full fp32"
