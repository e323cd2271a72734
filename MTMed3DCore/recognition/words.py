"""What a series description or file name says: weighting, contrast agent, or that it is none of the four sequences.

Descriptions are free text. Understood are vendors' protocol names (Siemens, GE, Philips, Canon) and the words for
"before" and "after contrast agent" in English, German, French, Spanish, Italian, Portuguese, Dutch, the Nordic
languages, Polish, Czech, Turkish, Japanese, Chinese and Korean.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_SPACED = re.compile(r"[_,;:.()\[\]{}^=#&|\"'<>]+")
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")  # not the minus of "IV-" or "- C"
# A weighting with what is written onto it: T1w, T1WI, T1c, T1Gd, T2FLAIR, eT2W, sT1W.
_GLUED = re.compile(r"(?<![a-z0-9])[a-z]{0,2}(t[12])(?:w(?:i|e)?|weighted)?(?=[^0-9*]|$)")
_AFTER_T1 = re.compile(r"\bt1 (c|n)(?![a-z/])")
_SURGERY = re.compile(r"\b(?:post|pre|pra)[ -]?(?:op\w*|surg\w*)\b")
_JAPANESE_BEFORE = re.compile("造影前|平扫|平掃|単純|非造影|조영전|비조영")
_JAPANESE_AFTER = re.compile("造影|增强|增強|조영|강화")

_BEFORE = re.compile(
    r"(?<![a-z])(?:pre(?:contrast|gad\w*|gd)?|before|without|w ?/? ?o|non?|native?|nativo|unenhanced|plain|vor|ohne"
    r"|avant|sans|sin|senza|sem|antes|prima|basale?|blanco|zonder|uten|utan|uden|bez|kontrastsiz|s ?/ ?c|nc)(?![a-z])"
    r"|(?<![a-z])(?:iv|gd|gado?|km|c) ?-(?= |$)|(?<![a-z0-9]) ?- ?c(?![a-z])"
)
_AFTER = re.compile(
    r"(?<![a-z])(?:post(?:contrast\w*|gad\w*|gd)?|after|nach|n ?km|apres|despues|dopo|pos|apos|depois|efter|etter|po"
    r"|na)(?![a-z])"
)
_AFTER_NEEDS_AGENT = frozenset({"na", "po", "pos", "n"})
_AGENT = re.compile(
    r"\+ ?(?:c|k|gd|gad\w*|km|cm|mdc|contrast\w*|kontrast\w*)(?![a-z])|(?<![a-z])(?:c|gd|km|cm|iv) ?\+"
    r"|(?<![a-z])(?:ce|cm|gd|gad|gado\w*|gadolin\w*|km|mdc|c ?/ ?c|w ?/ ?c|civ|cte|iv|contrast\w*|kontrast?\w*"
    r"|constrast\w*|enhanced|inj\w*|zouei|zengqiang|dotarem|gadovist|magnevist|clariscan|c)(?![a-z])"
)

_T1_NAMES = re.compile(
    r"(?<![a-z])(?:mp ?rage|mp2rage|mprage|tfl3d|bravo|f?spgr|ir ?fspgr|vibe|thrive|lava|tfe|wave ?mprage)(?![a-z])"
    r"|mprage"
)
_T2_NAMES = re.compile(r"(?<![a-z])frfse(?![a-z])")
_FLAIR = re.compile(r"flair(?![a-z])|dark[ -]?fluid|(?<![a-z])da[ -]?fl(?![a-z])|(?<![a-z])(?:t2f|fla)(?![a-z])")
_T2_STAR = re.compile(r"t2 ?\*|t2 ?-?star|t2 ?s(?:tern)?(?![a-z])")
_GRADIENT = re.compile(r"(?<![a-z])(?:gre|ffe|fl2d|fl3d|eg|hemo|haemo|medic|merge)(?![a-z])")
_LABEL = re.compile(r"(?<![a-z])(?:seg|mask|labels?|brainmask|segmentation|fusion|ot|rtstruct)(?![a-z])")

# Why a series is none of the four sequences; the first that fits is told.
_ASIDE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (reason, re.compile(pattern))
    for reason, pattern in (
        ("localiser", r"locali[sz]|(?<![a-z])(?:loc|scout|survey|scano|plane|3pl|3plane)(?![a-z])|scout|survey"),
        ("not MR", r"(?<![a-z])(?:ct|pet|cta)(?![a-z])"),
        ("picture of the screen", r"screen ?(?:save|shot|cap)|secondary capture|dose report|(?<![a-z])vrt(?![a-z])"),
        (
            "diffusion",
            r"(?<![a-z])(?:dwi|dti|dki|adc|eadc|fa|colfa|ivim|hardi|noddi|dmri|dwibs|trace\w*|resolve|isodwi)(?![a-z])"
            r"|diff|difus|(?<![a-z])b ?(?:50|[1-9]\d{2,3})(?![0-9a-z])|tensor",
        ),
        (
            "perfusion",
            r"perf(?!ect)|(?<![a-z])(?:dsc|dce|asl|pcasl|pasl|rcbv|cbv|cbf|rcbf|mtt|ttp|tmax|pwi|ktrans)(?![a-z])"
            r"|relcb|(?<![a-z])dyn\w*",
        ),
        ("functional imaging", r"(?<![a-z])(?:bold|fmri|rsfmri|rfmri|resting|rest)(?![a-z])"),
        (
            "field map or calibration",
            r"field ?map\w*|fieldmap|b0 ?map|b1 ?map|calib|(?<![a-z])(?:cal|refscan|ref scan|shim\w*)(?![a-z])",
        ),
        ("susceptibility weighting", r"(?<![a-z])(?:swi|swan|swip|swm|qsm|minip|mnip|mag images|pha images)(?![a-z])"),
        (
            "angiography",
            r"(?<![a-z])(?:tof|mra|mrv|cemra|cow|pca|inhance|velocity|venc)(?![a-z])|angio|venogra|phase contrast",
        ),
        ("spectroscopy", r"(?<![a-z])(?:svs|csi|mrs|mrsi)(?![a-z])|spectro|spektro"),
        ("subtraction", r"(?<![a-z])subs?(?![a-z])|subtra"),
        ("reformatted or projected", r"(?<![a-z])(?:mip|reformat\w*|mpr range|curved|oblique mpr)(?![a-z])"),
        ("parameter map", r"t[12] ?-?map|(?<![a-z])(?:mtr|mtc?|t1rho|mrf|relaxo\w*|syntac)(?![a-z])"),
        ("other weighting", r"(?<![a-z])(?:e?s?stir|dir|ciss|fiesta|b?ssfp|trufi|true ?fisp|bffe|balanced)(?![a-z])"),
        (
            "not the brain",
            r"(?<![a-z])(?:[clt] ?-?spine|spine|lumbar|lws|hws|bws|lwk|rachis|columna|cervical|thorax|abdomen|knee"
            r"|breast|prostate|neck|hals)(?![a-z])",
        ),
    )
)
_REFORMAT = re.compile(r"(?<![a-z])mpr(?![a-z])")
_MPRAGE_AS_MPR = re.compile(r"t1 ?-?(?:3d )?mpr(?![a-z])")


@dataclass(frozen=True)
class Words:
    """What a text says.

    Args:
        weightings: those of ``t1``, ``t2``, ``flair`` that it names; more than one where it names more.
        contrast: True after, False before contrast agent, None where it says neither.
        contradictory: it says both before and after.
        aside: why it is none of the four sequences, or empty.
    """

    weightings: frozenset[str] = frozenset()
    contrast: bool | None = None
    contradictory: bool = False
    aside: str = ""


def plain(text: str) -> str:
    """Lower case, without accents and separators, weightings as words of their own: ``sT1W_3D_TFE``, ``t1 3d tfe``."""
    letters = unicodedata.normalize("NFKD", text.replace("ß", "ss")).lower()
    letters = unicodedata.normalize("NFC", "".join(c for c in letters if unicodedata.category(c) != "Mn"))
    spaced = re.sub(r"\s+", " ", _HYPHEN.sub(" ", _SPACED.sub(" ", letters))).strip()
    apart = re.sub(r"\s+", " ", _GLUED.sub(r" \1 ", spaced)).strip()
    return _SURGERY.sub(" ", apart)


def read_words(text: str) -> Words:
    """What a series description, protocol name or file name (without suffix) says."""
    words = plain(text)
    aside = _aside(words)
    if aside:
        return Words(aside=aside)
    before, after = _contrast(words)
    contrast = True if after and not before else False if before and not after else None
    return Words(_weightings(words), contrast, before and after)


def _weightings(words: str) -> frozenset[str]:
    found = {weighting for weighting in ("t1", "t2") if re.search(rf"(?<![a-z0-9]){weighting}(?![0-9*])", words)}
    if _T1_NAMES.search(words) and "t2" not in found:
        found.add("t1")
    if _T2_NAMES.search(words) and "t1" not in found:
        found.add("t2")
    if _FLAIR.search(words):
        # T1 FLAIR is an inversion-recovery T1; T2 FLAIR and FLAIR alone are the FLAIR.
        found = found if found == {"t1"} else (found - {"t2"}) | {"flair"}
    return frozenset(found)


def _contrast(words: str) -> tuple[bool, bool]:
    """Whether the words say before, and whether they say after contrast agent."""
    if _JAPANESE_BEFORE.search(words):
        return True, False
    agent = bool(_AGENT.search(words) or _JAPANESE_AFTER.search(words) or re.search(r"\bt1 c(?![a-z/])", words))
    before = bool(_BEFORE.search(words) or re.search(r"\bt1 n(?![a-z/])", words))
    after = {match.group().split(" ")[0] for match in _AFTER.finditer(words)}
    if not agent:
        after -= _AFTER_NEEDS_AGENT  # short words that mean "after" only beside an agent
    return before, bool(after) or (agent and not before)


def _aside(words: str) -> str:
    if _LABEL.search(words):
        return "label map"
    for reason, pattern in _ASIDE:
        if pattern.search(words):
            return reason
    has_t1 = bool(re.search(r"(?<![a-z0-9])t1(?![0-9])", words) or _T1_NAMES.search(words))
    has_flair = bool(_FLAIR.search(words))
    if _REFORMAT.search(words) and not _MPRAGE_AS_MPR.search(words):
        return "reformatted or projected"
    if _T2_STAR.search(words) or (_GRADIENT.search(words) and not has_t1 and not has_flair):
        return "gradient echo (T2*)"
    if re.search(r"(?<![a-z])(?:pd|dp|rho)(?![a-z])", words) and not has_t1 and not has_flair:
        return "" if re.search(r"(?<![a-z0-9])t2(?![0-9])", words) else "proton density"
    return ""
