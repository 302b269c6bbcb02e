"""Figures and the HTML report: from plain data to files, written whole or not at all.

Each figure takes a result (`massive_jax.report.results`), or what its JSON file holds. Nothing here runs a model, and
matplotlib is imported only when a figure is drawn.
"""

from massive_jax.files import atomic_write, read_json, write_arrays, write_json
from massive_jax.report.attention import plot_attention
from massive_jax.report.census import plot_census
from massive_jax.report.effects import effect_of, intervention_of
from massive_jax.report.emergence import plot_emergence, plot_fits
from massive_jax.report.feature_map import plot_feature_map
from massive_jax.report.html import Section, Summary, Table, write_report
from massive_jax.report.intervention import about_intervals, intervention_rows, plot_intervention
from massive_jax.report.layerwise import plot_layerwise
from massive_jax.report.massive_attention import plot_massive_attention
from massive_jax.report.observatory import (
    METRICS,
    attention_metrics,
    census_metrics,
    intervention_metrics,
    metric_rows,
    plot_observatory,
    weight_metrics,
)
from massive_jax.report.overlay import Panel, plot_overlay
from massive_jax.report.preview import plot_preview
from massive_jax.report.profiles import plot_profiles
from massive_jax.report.quantization import (
    outlier_rows,
    plot_quantization,
    quantization_rows,
    quantization_title,
)
from massive_jax.report.records import as_json, as_record
from massive_jax.report.registers import plot_registers
from massive_jax.report.super_weights import (
    plot_super_weights,
    super_weight_rows,
    super_weight_title,
    told_in_words,
)
from massive_jax.report.sweep import plot_sweep
from massive_jax.report.variants import markdown_table, plot_variant_curves, plot_variants, variant_rows
from massive_jax.report.words import label, number, precision
from massive_jax.report.zero_shot import plot_zero_shot, zero_shot_rows, zero_shot_title

__all__ = [
    "METRICS",
    "Panel",
    "Section",
    "Summary",
    "Table",
    "about_intervals",
    "as_json",
    "as_record",
    "atomic_write",
    "attention_metrics",
    "census_metrics",
    "effect_of",
    "intervention_metrics",
    "intervention_of",
    "intervention_rows",
    "label",
    "markdown_table",
    "metric_rows",
    "number",
    "outlier_rows",
    "plot_attention",
    "plot_census",
    "plot_emergence",
    "plot_feature_map",
    "plot_fits",
    "plot_intervention",
    "plot_layerwise",
    "plot_massive_attention",
    "plot_observatory",
    "plot_overlay",
    "plot_preview",
    "plot_profiles",
    "plot_quantization",
    "plot_registers",
    "plot_super_weights",
    "plot_sweep",
    "plot_variant_curves",
    "plot_variants",
    "plot_zero_shot",
    "precision",
    "quantization_rows",
    "quantization_title",
    "read_json",
    "super_weight_rows",
    "super_weight_title",
    "told_in_words",
    "variant_rows",
    "weight_metrics",
    "write_arrays",
    "write_json",
    "write_report",
    "zero_shot_rows",
    "zero_shot_title",
]
