"""What a preparation did, in a line a person reads: for the command line, the quality picture and the Slicer panel."""

from __future__ import annotations

from MTMed3DCore.preparation.record import BRAIN_SOURCES, PreparationRecord, Registration

CALM, DOUBT, ALARM = "calm", "doubt", "alarm"
"""How much attention something needs: none, a look, or a correction."""
_ATTENTION = {"good": CALM, "not-needed": CALM, "doubtful": DOUBT, "failed": ALARM}
_VERDICTS = {
    "good": "good",
    "doubtful": "doubtful, compare the two by eye",
    "failed": "failed, left where its header puts it",
}
_MASK_ATTENTION = {"built-in": DOUBT, "head": ALARM}


def registration_in_words(each: Registration) -> str:
    """Verdict and figures of one registration, without the sequence's name."""
    if each.verdict == "not-needed":
        return "as given by the user" if each.method == "given" else "not needed, lies on the T1ce already"
    parts = [_VERDICTS[each.verdict]]
    if each.disagreement_mm is not None:
        parts.append(f"two runs end {each.disagreement_mm:.1f} mm apart")
    if each.method == "mutual-information":
        parts.append(f"moved {each.translation_mm:.1f} mm, turned {each.rotation_deg:.1f}\u00b0")
    return "; ".join(parts)


def registration_attention(each: Registration) -> str:
    """`CALM`, `DOUBT` or `ALARM`."""
    return _ATTENTION[each.verdict]


def mask_in_words(record: PreparationRecord) -> str:
    """Where the brain mask comes from, and its volume."""
    return f"{BRAIN_SOURCES[record.brain_source]}; {record.brain_ml:.0f} ml"


def mask_attention(record: PreparationRecord) -> str:
    """`CALM`, `DOUBT` or `ALARM`."""
    return _MASK_ATTENTION.get(record.brain_source, CALM)
