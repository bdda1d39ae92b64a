"""The report's tables, in their order."""

from __future__ import annotations

from harness.analysis.comparison import Comparison
from harness.analysis.cost import Prices
from harness.common.text_table import Table, without_empty_columns
from harness.report.comparison_table import comparison_table
from harness.report.cost_tables import cost_table, memory_table
from harness.report.quality_tables import category_table, kind_table, own_figures_table, quality_table
from harness.report.speed_tables import difference_table, variant_table
from harness.report.step_tables import profile_table, rank_table, resource_table, split_table


def all_tables(comparison: Comparison, prices: Prices) -> list[Table]:
    """The tables of the report that have something to show, in its order."""
    made = [
        comparison_table(comparison),
        difference_table(comparison),
        variant_table(comparison),
        quality_table(comparison),
        category_table(comparison),
        kind_table(comparison),
        own_figures_table(comparison),
        split_table(comparison),
        rank_table(comparison),
        profile_table(comparison),
        memory_table(comparison),
        resource_table(comparison),
        cost_table(comparison, prices),
    ]
    return [without_empty_columns(table) for table in made if table is not None]
