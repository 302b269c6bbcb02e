"""The page: counts, a table a section, and the commands that it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from massive_jax.report.ledger.claim import VERDICTS, Entry, Ours
from massive_jax.report.words import number

_INTRODUCTION = """# Replication ledger

What papers on massive activations, attention sinks and outliers claim, and what this project finds of it on the models
that it can run. Every row has a rule in the code for when the claim counts as reproduced, written before these results
were there unless it says so; some numbers of the default model were known from before. Brackets are 95 % over windows
of the text; a claim whose rule holds at one end of them only is undecided. Models, texts and sizes are others than the
papers': a row that is not reproduced says that the claim is no law, not that the paper is wrong about its models.
"""


def write_page(
    sections: Mapping[str, Sequence[Entry]], made: Sequence[tuple[str, str]], commands: Sequence[str]
) -> str:
    """Gives the page in Markdown.

    Args:
      sections: rows by the section's title.
      made: what the page was made with, (what, value): date, versions, texts.
      commands: those that made the results.
    """
    entries = [entry for section in sections.values() for entry in section]
    counts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in VERDICTS}
    papers = len({entry.claim.paper for entry in entries})
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    parts = [_INTRODUCTION, f"**{len(entries)} claims of {papers} papers: {said}.**\n"]
    row = 0
    for title, section in sections.items():
        parts.append(f"## {title}\n")
        parts.append("| | Claim | Theirs | Ours | Verdict |\n| ---: | --- | --- | --- | --- |")
        before = None
        for entry in section:
            row += 1
            parts.append(_row(row, entry, again=before == (entry.claim.paper, entry.claim.states, entry.claim.rule)))
            before = (entry.claim.paper, entry.claim.states, entry.claim.rule)
        parts.append("")
    parts.append("## How this page was made\n")
    parts.append("\n".join(f"- {what}: {value}" for what, value in made) + "\n")
    parts.append(
        "`make ledger` runs what is missing of these, reads their results and writes the page:\n\n"
        + "\n".join(f"    {command}" for command in commands)
    )
    return "\n".join(parts) + "\n"


def _row(number_of_row: int, entry: Entry, *, again: bool) -> str:
    """A row; what it has in common with the one above, the same claim of another model, is not said `again`."""
    claim = entry.claim
    rule = f"<br>*Rule: {claim.rule}.*" if claim.rule else ""
    states = f"{claim.states} [{claim.paper}](https://arxiv.org/abs/{claim.paper}){rule}"
    ours = claim.model if entry.ours is None else f"{claim.model}: {_ours(entry.ours)}"
    verdict = f"**{entry.verdict}**" + (f": {entry.why.rstrip('.')}" if entry.why else "")
    cells = (str(number_of_row), "″" if again else states, "″" if again else claim.theirs, ours, verdict)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _ours(ours: Ours) -> str:
    if ours.words is not None:
        return ours.words
    interval = "" if ours.low is None or ours.high is None else f" [{number(ours.low)}, {number(ours.high)}]"
    return number(ours.value) + interval
