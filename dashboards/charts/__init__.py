"""Tables become charts: pure functions from columns to altair.Chart, few marks, units on every axis."""

from dashboards.charts.base import PALETTE, POINTS, Chart
from dashboards.charts.capacity import goodput
from dashboards.charts.changes import changes
from dashboards.charts.controller import cost_accuracy, decisions, thought
from dashboards.charts.hardware import expansion, of_the_floor, roofline
from dashboards.charts.kv import kv_over_time, load_over_time, pages_by_tier
from dashboards.charts.latency import (
    METRICS,
    PARTS,
    latency_cdf,
    over_time,
    time_spent,
    where_time_goes,
)
from dashboards.charts.money import money, transfers, waterfall
from dashboards.charts.quality import (
    accuracy_by_compute,
    by_difficulty,
    joint,
    marginals,
    reliability,
)
from dashboards.charts.search import pages as search_pages
from dashboards.charts.search import tree as search_tree

__all__ = [
    "METRICS",
    "PALETTE",
    "PARTS",
    "POINTS",
    "Chart",
    "accuracy_by_compute",
    "by_difficulty",
    "changes",
    "cost_accuracy",
    "decisions",
    "expansion",
    "goodput",
    "joint",
    "kv_over_time",
    "latency_cdf",
    "load_over_time",
    "marginals",
    "money",
    "of_the_floor",
    "over_time",
    "pages_by_tier",
    "reliability",
    "roofline",
    "search_pages",
    "search_tree",
    "thought",
    "time_spent",
    "transfers",
    "waterfall",
    "where_time_goes",
]
