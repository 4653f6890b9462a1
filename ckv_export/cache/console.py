"""The cache report as rich tables, for a terminal of 100 columns."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from ckv_export.cache.occupancy import PoolOccupancy
from ckv_export.cache.report import CacheReport
from ckv_export.cache.rows import SizeRow
from ckv_export.cache.shared import SharedBasis
from ckv_export.cache.sizes import CacheSizes, Comparison
from ckv_export.cache.spectrum import Spectrum
from ckv_export.cache.units import bytes_text, count_text, percent_text

SIDES = (("compact", "CollectiveKV"), ("full_fp16", "full fp16"), ("full_fp32", "full fp32"))


def tables(report: CacheReport) -> list[RenderableType]:
    """Sizes, comparison and notes; then pool use and spectra where they were measured."""
    parts: list[RenderableType] = [_sizes(report.sizes), _comparison(report.sizes)]
    if report.sizes.users is not None:
        parts.append(_totals(report.sizes))
    parts.append(_notes(report.sizes))
    source = f"(events: {report.events or 'unknown'})"
    if report.occupancy:
        parts.append(_occupancy(report.occupancy, source))
    if report.spectrum:
        parts.append(_spectrum(report.spectrum, source))
        parts += [_shared(s, s.shared) for s in report.spectrum if s.shared is not None]
    return [Padding(part, (0, 0, 1, 0)) for part in parts]


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    """First column left, the others right."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.title_justify = table.caption_justify = "left"
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _sizes(sizes: CacheSizes) -> Table:
    table = _table(
        f"{sizes.kind}: stored per user ({count_text(sizes.cached_events)} of "
        f"{count_text(sizes.history_events)} events cached)",
        *("what", "as", "bytes/event/layer", "events", "layers", "per user"),
        caption=f"Beside it, once per server: pools of {bytes_text(sizes.pool_bytes)} in fp32.",
    )
    for row in sizes.compact:
        _add(table, row)
    table.add_section()
    each = count_text(sum(row.bytes_per_event for row in sizes.compact))
    total = bytes_text(sizes.compact_bytes)
    table.add_row("the compact cache", "", each, "", "", total, style="bold", end_section=True)
    for row in sizes.full:
        _add(table, row)
    table.add_section()
    for row in sizes.item_features:
        _add(table, row)
    table.add_section()
    table.add_row("a stored record", "", "", "", "", bytes_text(sizes.record_bytes), style="bold")
    if sizes.item_id:
        _add(table, sizes.item_id)
    return table


def _notes(sizes: CacheSizes) -> Table:
    grid = Table.grid(padding=(0, 1))
    for note in sizes.notes:
        grid.add_row("-", note)
    return grid


def _add(table: Table, row: SizeRow) -> None:
    numbers = (count_text(n) for n in (row.bytes_per_event, row.events, row.layers))
    table.add_row(row.what, row.dtype, *numbers, bytes_text(row.bytes_per_user))


def _comparison(sizes: CacheSizes) -> Table:
    table = _table(
        "Against the full KV cache",
        *("what is kept", "server", "per user", "users per GB", "of fp16", "of fp32"),
        caption=(
            "GB = 10^9 bytes. Row numbers are counted. The paper's ratio d_u/d does not count "
            f"them: K {percent_text(sizes.paper_ratio_k)}, V {percent_text(sizes.paper_ratio_v)}."
        ),
    )
    for comparison in sizes.comparisons:
        _add_servers(table, comparison)
    return table


def _add_servers(table: Table, comparison: Comparison) -> None:
    data = comparison.to_dict()
    for field, name in SIDES:
        compact = field == "compact"
        ratios = (comparison.ratio_fp16, comparison.ratio_fp32) if compact else (None, None)
        table.add_row(
            comparison.label if compact else "",
            name,
            bytes_text(data["bytes_per_user"][field]),
            count_text(data["users_per_gb"][field]),
            *(percent_text(r) if compact else "" for r in ratios),
            style="bold" if compact else None,
            end_section=field == SIDES[-1][0],
        )


def _totals(sizes: CacheSizes) -> Table:
    title = f"For {count_text(sizes.users)} users"
    table = _table(title, "what is kept", *(name for _, name in SIDES))
    for comparison in sizes.comparisons:
        totals = comparison.to_dict(sizes.users)["total_bytes"]
        cells = (bytes_text(totals[field]) for field, _ in SIDES)
        table.add_row(comparison.label, *cells)
    return table


def _occupancy(parts: tuple[PoolOccupancy, ...], source: str) -> Table:
    table = _table(
        f"Pool use {source}",
        *("pool", "events", "rows", "used", "dead", "if even", "exp H", "H/ln M"),
        *("top 1%", "top 10%", "busiest"),
        caption=(
            "if even: rows that as many events would use on average, every row as likely. "
            "H: entropy of the rows' shares; exp H: as so many evenly used rows. top 1%, "
            "top 10%, busiest: share of the events on these rows."
        ),
    )
    for use in parts:
        counts = (use.events, use.rows, use.rows_used, use.rows_dead)
        shares = (use.top_1_percent, use.top_10_percent, use.max_row_share)
        table.add_row(
            _place(use),
            *(count_text(n) for n in counts),
            count_text(round(use.uniform_used_rows)),
            count_text(use.effective_rows),
            f"{use.normalised_entropy:.3f}",
            *(percent_text(s) for s in shares),
        )
    return table


def _spectrum(parts: tuple[Spectrum, ...], source: str) -> Table:
    table = _table(
        f"Spectrum {source}",
        *("vectors", "users", "events", "d", "90%", "95%", "99%", "eff. rank", "pool energy"),
        caption=(
            "Not centred. 90%, 95%, 99%: dimensions that hold that share of the energy (sum of "
            "squares). eff. rank: exp(entropy of the energies). pool energy: share in the "
            "columns from the pool."
        ),
    )
    for s in parts:
        numbers = (s.users, s.events, s.d, s.rank_90, s.rank_95, s.rank_99, s.effective_rank)
        cells = (count_text(n) for n in numbers)
        table.add_row(_place(s), *cells, percent_text(s.pool_energy))
    return table


def _shared(spectrum: Spectrum, basis: SharedBasis) -> Table:
    table = _table(
        f"{_place(spectrum)}: energy that users share",
        "dimensions",
        *(count_text(r) for r in basis.ranks),
        caption=(
            f"Energy of {basis.users_b} users captured by a basis found on {basis.users_a} other "
            "users, by each user's own best basis, and the ratio of the two."
        ),
    )
    for name, shares in (
        ("basis of other users", basis.shared),
        ("each user's own basis", basis.own),
        ("shared fraction", basis.fraction),
    ):
        style = "bold" if name == "shared fraction" else None
        table.add_row(name, *(percent_text(s) for s in shares), style=style)
    return table


def _place(part: PoolOccupancy | Spectrum) -> str:
    return f"{part.side.upper()} layer {part.layer}"
