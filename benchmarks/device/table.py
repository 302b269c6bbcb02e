"""Records as JSON, tables in Markdown and a picture of the roofline."""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.device.record import RECORDS

Record = Mapping[str, Any]

# Which measurement another section's are set against, and by which number: (section, how its names begin).
_PEERS = {
    "train": ("train_torch", "torch, compiled", "tokens_per_second"),
    "forward": ("forward_torch", "torch, eager", "tokens_per_second"),
    "generation": ("generation_torch", "torch, static cache", "tokens_per_second"),
}
# Keys that tables show, with the words and the unit.
_COLUMNS: dict[str, tuple[str, float, str]] = {
    "seconds": ("ms", 1e3, ",.3f"),
    "fastest": ("fastest, ms", 1e3, ",.3f"),
    "tokens_per_second": ("tokens/s", 1, ",.0f"),
    "prompt_tokens_per_second": ("prompt tokens/s", 1, ",.0f"),
    "against_peer": ("× torch", 1, ".2f"),
    "over_plain": ("over plain", 1, ".3f"),
    "flops_per_second": ("TFLOP/s", 1e-12, ",.1f"),
    "mfu": ("MFU", 1, ".1%"),
    "bytes_per_second": ("GB/s", 1e-9, ",.0f"),
    "bytes_accessed": ("GB accessed", 1e-9, ",.2f"),
    "temporary_bytes": ("temporary, MiB", 2**-20, ",.0f"),
    "compile_seconds": ("compiled in, s", 1, ",.1f"),
    "programs_compiled": ("programs", 1, ",.0f"),
    "forward": ("error, forward", 1, ".2e"),
    "gradient": ("error, gradient", 1, ".2e"),
    "holds": ("holds", 1, ""),
    "busy_seconds": ("device busy, ms", 1e3, ",.2f"),
    "steps": ("steps", 1, ",.0f"),
    "tokens": ("tokens", 1, ",.0f"),
    "first_loss": ("first loss", 1, ".4f"),
    "last_loss": ("last loss", 1, ".4f"),
    "planned_steps": ("steps planned", 1, ",.0f"),
    "parameters": ("parameters", 1, ",.0f"),
    "loss": ("held-out loss", 1, ".4f"),
    "first_share": ("attention on the first token", 1, ".1%"),
    "sink_heads": ("sink heads", 1, ".0%"),
    "slot_share": ("on slots", 1, ".1%"),
    "ratio": ("first token's largest over the median", 1, ",.1f"),
    "typical_ratio": ("a typical token's", 1, ",.1f"),
    "dim": ("dim", 1, ".0f"),
    "left_out": ("left out", 1, ""),
    "failed": ("failed", 1, ""),
}


def read_records(out: pathlib.Path) -> list[dict[str, Any]]:
    """Reads what has been measured so far; a line that was cut off is left out."""
    records = []
    for line in (out / RECORDS).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def write_tables(out: pathlib.Path) -> None:
    """Writes device.json, device.md and, where matplotlib is there, roofline.png."""
    records = with_ratios(read_records(out))
    (out / "device.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (out / "device.md").write_text(markdown(records), encoding="utf-8")
    try:
        from benchmarks.device.roofline import draw
    except ModuleNotFoundError:
        return
    draw(records, out / "roofline.png")


def with_ratios(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Adds "against_peer", how many times the peer's rate, where the peer's was measured for the same sizes."""
    found = [dict(record) for record in records]
    for record in found:
        if record["section"] not in _PEERS:
            continue
        section, prefix, key = _PEERS[record["section"]]
        for peer in found:
            same = _size(peer["what"].removeprefix(prefix)) == _size(record["what"])
            if (
                peer["section"] == section
                and peer["what"].startswith(prefix)
                and same
                and key in peer
                and key in record
            ):
                record["against_peer"] = record[key] / peer[key]
    return found


def _size(what: str) -> str:
    """The batch and length, or what of a generation, that a name ends with."""
    last = what.rsplit(", ", 1)[-1]
    return last if "×" in last else ""


def markdown(records: Iterable[Record]) -> str:
    """Gives the tables: versions, one of each section, and what became of the sections."""
    by_section: dict[str, list[Record]] = {}
    for record in records:
        by_section.setdefault(record["section"], []).append(record)
    lines = ["# On this device", ""]
    for record in by_section.get("environment", []):
        if record["what"] not in ("status", "section"):
            said = ", ".join(
                f"{k} {v}" for k, v in record.items() if k not in ("section", "what") and v not in ("", None)
            )
            lines += [f"{record['what']}: {said}", ""]
    lines += [f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC", ""]
    for section, found in by_section.items():
        rows = [r for r in found if r["what"] not in ("status", "section")]
        columns = [key for key in _COLUMNS if any(r.get(key) is not None for r in rows)]
        if section == "environment" or not columns:
            continue
        lines += [f"## {section}", ""]
        lines += ["| | " + " | ".join(_COLUMNS[key][0] for key in columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {r['what']} | " + " | ".join(_cell(key, r.get(key)) for key in columns) + " |" for r in rows]
        lines += [""]
        for record in rows:
            if kernels := record.get("kernels"):
                lines += [
                    f"Kernels of `{record['what']}`, milliseconds a step:",
                    "",
                    "| | times | ms |",
                    "|---|---|---|",
                ]
                lines += [f"| `{name[:90]}` | {count:.0f} | {1e3 * s:.3f} |" for name, count, s in kernels[:25]] + [""]
    for record in by_section.get("reductions", []):
        if record.get("text"):
            lines += ["## reductions", "", "```", record["text"].rstrip(), "```", ""]
    lines += ["## sections", "", "| | how it ended | seconds | programs | compiling, s |", "|---|---|---|---|---|"]
    for section, found in by_section.items():
        status = next((r["status"] for r in found if r["what"] == "status"), "running, or killed")
        took: Record = next((r for r in found if r["what"] == "section"), {})
        numbers = (took.get("seconds"), took.get("programs_compiled"), took.get("compile_seconds"))
        lines.append(
            f"| {section} | {status} | " + " | ".join("" if n is None else f"{n:,.0f}" for n in numbers) + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    _, factor, layout = _COLUMNS[key]
    if not layout:
        return {True: "yes", False: "**no**"}.get(value, str(value).replace("|", "\\|")[:120])
    return format(value * factor, layout)
