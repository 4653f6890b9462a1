from __future__ import annotations

import builtins
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from ckv_export.cache import CacheReport, cache_sizes, kv_spectrum, plot_report, pool_occupancy
from ckv_export.cache.console import tables
from ckv_export.cache.units import bytes_text, count_text, percent_text
from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import InputError, MissingDependency

SPEC = ModelSpec(
    kind="sim",
    features=(FeatureSpec("item_id", "item", "categorical", 8, vocab_size=9),),
    attention=AttentionSpec(256, 1, 2, 2, 10000, 10000),
    dnn=DnnSpec((), (), True),
    max_len=1000,
    window=50,
)


@pytest.fixture(scope="module")
def report() -> CacheReport:
    random = np.random.default_rng(0)
    index = random.integers(0, 500, (4, 1, 30))
    vectors = random.normal(size=(4, 30, 16))
    return CacheReport(
        cache_sizes(SPEC, users=10**9),
        tuple(u for s in "kv" for u in pool_occupancy(index, rows=10000, side=s)),
        tuple(kv_spectrum(vectors, side=s, pool_width=14) for s in "kv"),
        "generated, seed 0",
    )


def rendered(report: CacheReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables(report):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_to_dict_reads_back_from_json_unchanged(report: CacheReport):
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["schema_version"] == 1
    assert data["events"] == "generated, seed 0"
    assert [u["side"] for u in data["occupancy"]] == ["k", "v"]


def test_sizes_alone_make_a_report():
    report = CacheReport(cache_sizes(SPEC))
    data = report.to_dict()
    assert data["occupancy"] is None
    assert data["spectrum"] is None
    assert "Pool use" not in rendered(report)


def test_tables_say_the_numbers(report: CacheReport):
    text = rendered(report)
    for words in ("588 B", "0.59%", "1,700,680", "588 GB", "generated, seed 0", "basis of other"):
        assert words in text
    assert "…" not in text


def says(report: CacheReport, *rows: str) -> None:
    """Each of `rows` stands in the tables, cells apart by a blank."""
    text = " ".join(rendered(report).split())
    for row in rows:
        assert row in text


def test_the_sizes_by_hand():
    attention = AttentionSpec(16, 1, 2, 3, 500, 500)
    spec = dataclasses.replace(SPEC, attention=attention)
    says(
        CacheReport(cache_sizes(spec, users=10**6)),
        "sim: stored per user (49 of 1,000 events cached)",
        "V user part fp16 6 49 1 294 B",
        "the compact cache 14 686 B",
        "K and V, full fp32 128 49 1 6.27 kB",
        "a stored record 4.75 kB",  # 64 + 686 + 4000
        "or item_id alone int32 4 1,000 1 4.00 kB",
        "pools of 54.0 kB in fp32",  # 500 rows of 14 and 13 numbers
        "cache alone CollectiveKV 686 B 1,457,725 21.9% 10.9% "
        "full fp16 3.14 kB 318,877 full fp32 6.27 kB 159,438",
        "K 12.5%, V 18.8%",
        "cache alone 686 MB 3.14 GB 6.27 GB",
    )


def test_the_pool_use_by_hand():
    index = np.repeat([3, 1, 5], [6, 3, 1])
    uses = pool_occupancy(index, rows=200, side="v")
    says(
        CacheReport(cache_sizes(SPEC), uses),
        "V layer 0 10 200 3 197 10 2.5 0.169 90.0% 100% 60.0%",
    )


def test_the_spectrum_by_hand():
    """Of three users the second is held against the basis of the others, whose order is its own
    turned round."""
    a, b = (np.diag(np.sqrt(energy)) for energy in ([90.0, 5, 4, 1], [1.0, 4, 5, 90]))
    spectrum = kv_spectrum([a, b, a], layer=1, pool_width=3)
    says(
        CacheReport(cache_sizes(SPEC), spectrum=(spectrum,)),
        "K layer 1 3 12 4 2 3 4 2.6 69.3%",
        "dimensions 1 2 4",
        "basis of other users 1.0% 5.0% 100%",
        "each user's own basis 90.0% 95.0% 100%",
        "shared fraction 1.1% 5.3% 100%",
        "Energy of 1 users captured by a basis found on 2 other users",
    )


def test_tables_of_an_empty_history():
    text = rendered(CacheReport(cache_sizes(SPEC, history=0)))
    assert "0 B" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (588, "588 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (4588, "4.59 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (25e6, "25.0 MB"),
        (1.2e12, "1.20 TB"),
        (3e15, "3.00 PB"),
        (2e19, "20.0 EB"),
    ],
)
def test_bytes_text(size: float, text: str):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (0, "0%"),
        (9e-6, "<0.001%"),
        (12 / 2048, "0.59%"),
        (0.0974, "9.7%"),
        (0.2, "20.0%"),
        (0.375, "37.5%"),
        (0.9996, ">99.9%"),
        (1, "100%"),
        (1.5, "150%"),
    ],
)
def test_percent_text(share: float | None, text: str):
    assert percent_text(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(12345, "12,345"), (7, "7"), (7.25, "7.2"), (127.4, "127"), (None, "-")]
)
def test_count_text(number: float | None, text: str):
    assert count_text(number) == text


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Draw a report; the figure, which is not written."""
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def draw(report: CacheReport, **options: Any) -> Any:
        assert plot_report(report, tmp_path / "x.SVG", **options) == tmp_path / "x.SVG"
        return figures.pop()

    return draw


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Points of the lines that the legend names."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def test_spectra_are_drawn_in_percent(report: CacheReport, drawn: Callable[..., Any]):
    assert report.spectrum
    figure = drawn(report)
    for axes, spectrum in zip(figure.axes, report.spectrum, strict=False):
        ranks = f"{spectrum.rank_90} of 16"
        title = f"{spectrum.side.upper()}, layer 0: 90% of the energy in {ranks} dimensions"
        assert axes.get_title() == title
        found, basis = lines(axes), spectrum.shared
        assert basis
        percents = [100 * share for share in spectrum.cumulative]
        assert found.pop("all users, their common basis") == (list(range(1, 17)), percents)
        for curve, shares in zip(found.values(), (basis.shared, basis.own), strict=True):
            assert curve == (list(basis.ranks), [100 * share for share in shares])


def test_pool_use_is_drawn_over_the_rows_of_the_pool(
    report: CacheReport, drawn: Callable[..., Any]
):
    assert report.occupancy
    axes = drawn(report).axes[2]
    assert axes.get_title() == "Pool use, layer 0: 120 events"
    for stairs, use in zip(axes.patches, report.occupancy, strict=True):
        values, edges, _ = stairs.get_data()
        assert list(values) == [count for count in use.sorted_counts if count]
        assert (edges[0], edges[-1]) == (0, pytest.approx(100 * use.used_share))
        assert f"{use.rows_used} of 10,000 rows used" in stairs.get_label()
    assert [line.get_ydata()[0] for line in axes.lines] == [120 / 10_000] * 2


def test_bytes_are_drawn_to_scale(report: CacheReport, drawn: Callable[..., Any]):
    """A bar of the cache, and one of the history behind it where there is one."""
    axes = drawn(report).axes[3]
    bars: dict[float, list[tuple[float, float]]] = {}
    for bar in axes.patches:
        middle = round(bar.get_y() + bar.get_height() / 2, 6)
        bars.setdefault(middle, []).append((bar.get_x(), bar.get_width()))
    cache, *_ = comparisons = report.sizes.comparisons
    fields = ("compact", "full_fp16", "full_fp32")
    whole = [(getattr(c, f), getattr(cache, f)) for c in comparisons for f in fields]
    assert [bars[place] for place in sorted(bars)] == [
        [(0, alone)] + ([(alone, size - alone)] if size > alone else []) for size, alone in whole
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["CollectiveKV", "full fp16", "full fp32"] * len(comparisons)
    assert axes.get_ylim()[0] > max(bars)
    assert axes.get_xlim()[1] > max(size for size, _ in whole)
    told = [text.get_text().strip() for text in axes.texts]
    assert told[:3] == ["cache alone", "588 B: 0.59% of full fp32", "50.2 kB"]
    assert sum("history hatched" in text for text in told) == len(comparisons) - 1
    assert axes.get_xlabel() == "kB per user (units of 1000)"
    assert axes.xaxis.get_major_formatter()(2500, None) == "2.5"


def test_a_figure_is_of_one_layer(report: CacheReport, drawn: Callable[..., Any]):
    assert report.spectrum
    assert report.occupancy
    moved = dataclasses.replace(report.spectrum[0], layer=1)
    two = dataclasses.replace(report, spectrum=(*report.spectrum, moved))
    figure = drawn(two, layer=1)
    assert [axes.get_title()[:10] for axes in figure.axes] == ["K, layer 1", "Bytes per "]
    what = "what the CollectiveKV cache costs and holds"
    assert figure.get_suptitle() == f"sim: {what} (events: generated, seed 0)"
    layers = dataclasses.replace(SPEC, kind="hstu", window=None, num_layers=2)
    sizes = CacheReport(cache_sizes(layers))
    assert drawn(sizes).get_suptitle() == f"hstu, 2 layers: {what}"
    untold = dataclasses.replace(sizes, occupancy=report.occupancy)
    assert drawn(untold).get_suptitle() == f"hstu, 2 layers: {what} (events: unknown)"
    widths = [
        axes.get_subplotspec().colspan
        for axes in drawn(dataclasses.replace(report, occupancy=None)).axes
    ]
    assert [len(columns) for columns in widths] == [1, 1, 2]


def test_svg_is_the_same_every_time(report: CacheReport, tmp_path: Path):
    one, two = (plot_report(report, tmp_path / n).read_bytes() for n in ("a.svg", "b.SVG"))
    assert one == two
    assert len(one) > 10_000


@pytest.mark.filterwarnings("error")
def test_plot_of_nothing_much(tmp_path: Path):
    """No events, one dimension, empty history, a layer that was not measured."""
    empty = pool_occupancy(np.zeros(0, int), rows=3)
    point = (kv_spectrum([np.ones((1, 1)), np.ones((1, 1))]), kv_spectrum([np.zeros((0, 2))]))
    report = CacheReport(cache_sizes(SPEC, history=0), empty, point)
    assert plot_report(report, tmp_path / "few.png").exists()
    assert plot_report(report, tmp_path / "none.png", layer=3).exists()


def test_plot_refuses_other_endings_and_missing_folders(report: CacheReport, tmp_path: Path):
    with pytest.raises(InputError, match=r"end in \.png, \.svg, \.pdf, got 'report\.doc'"):
        plot_report(report, tmp_path / "report.doc")
    with pytest.raises(InputError, match="is not there"):
        plot_report(report, tmp_path / "missing" / "report.png")


def test_plot_without_matplotlib(
    report: CacheReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependency, match=r"ckv-export\[plot\]"):
        plot_report(report, tmp_path / "report.png")
