"""The names under which our nodes keep what we know of them; they survive saving and loading of the scene."""

from __future__ import annotations

STUDY = "MTMed3D.Study"
ROLE = "MTMed3D.Role"
"""Attributes of every node that is ours; a node without them is never touched."""
RESULT = "findings.json"
"""The file that makes a folder a result."""
MASK = "brain mask"
"""What the user's brain mask is called beside the names of the four sequences."""
STUDY_ATTRIBUTE = "MTMed3D.StudyName"
"""On a T1ce volume: the name of its study, unique in the scene."""
THRESHOLD = "MTMed3D.ScoreThreshold"
"""On the node of the findings: the score from which on the model reports a box."""
LESION = "MTMed3D.Lesion"
SCORE = "MTMed3D.Score"
PROBABILITY = "MTMed3D.Probability"
"""On a box: the probability that the lesion is a true one, by the model's calibration; absent where it has none."""
STATE = "MTMed3D.State"
WRITTEN = "MTMed3D.Written"
"""Digest of a node's content as the analysis wrote it: what differs from it, a reader edited."""
INPUT = "MTMed3D."
"""Node references from the segmentation to the volumes of the four sequences begin with this."""
T1CE = f"{INPUT}t1ce"
SEGMENTATION, NEWER, BOX, TABLE, GRADE, FINDINGS = "segmentation", "newer", "box", "table", "grade", "findings"
BRAIN = "brain"
"""Roles of our nodes."""
PROPOSED, KEPT, REJECTED, EDITED, ADDED = "proposed", "kept", "rejected", "edited", "added"
WHEN = "MTMed3D.Decided"
"""UTC time of the reader's last decision on a node."""
GRADE_WHEN = "MTMed3D.GradeDecided"
"""UTC time at which the reader set the grade."""
READER_GRADE, VERDICT, DIFFICULTY, COMMENT = (
    "MTMed3D.Grade",
    "MTMed3D.Verdict",
    "MTMed3D.Difficulty",
    "MTMed3D.Comment",
)
"""What the reader says of the study as a whole; on the grade's node."""
