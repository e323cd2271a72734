"""A process that keeps a model loaded and answers requests, one JSON object a line; what the Slicer panel talks to.

Requests on standard input, events on standard output, everything else on standard error::

    -> {"id": "7", "command": "analyze", "inputs": {"t1": "...", "t1ce": "...", "t2": "...", "flair": "..."},
        "output": "...", "model": "starter", "device": "auto", "precision": "auto", "study": "name", "overwrite": true,
        "mask": "...", "preparation": "...", "prior": "..."}
    <- {"id": "7", "event": "progress", "stage": "prepare", "fraction": 0.25, "text": "..."}
    <- {"id": "7", "event": "result", "findings": ".../findings.json", "device": "cpu", "warnings": ["..."],
        "score_threshold": 0.1, "preparation": {"brain_mask": {...}, "registrations": [...], "working_grid": {...}}}
    <- {"id": "7", "event": "error", "code": "no-overlap", "text": "...", "remedy": "..."}

=========== ============================================================ =============================================
command     fields besides ``id``                                        answer
=========== ============================================================ =============================================
``analyze`` ``inputs``, ``output``; the others above may be left out     ``progress``..., then ``result`` or ``error``
``load``    ``model``, ``device``                                        ``result`` with ``model`` and ``device``
``models``                                                               ``result`` with ``models``
``devices``                                                              ``result`` with ``devices``
``cancel``  ``target``: id of a request                                  ``result`` with ``cancelled``: true or false
``ping``                                                                 ``result`` with ``busy``: id or null
``shutdown``                                                             ``result``, then the process ends
=========== ============================================================ =============================================

``mask`` is the file of a brain mask in the space of the T1ce, in place of one found here; ``preparation`` the folder of
an earlier preparation or result of the same study, whose transforms and mask are used again; ``prior`` the folder of an
earlier result of the same patient, to be compared with. In the answer, ``preparation`` is what ``preparation.json``
says: where the brain mask came from, and the verdict and figures of each sequence's registration; the mask itself lies
beside ``findings.json`` in ``preparation/brain_mask.nii.gz``. ``warnings`` are those of the findings, every stage's.

The first line is ``{"event": "ready", ...}``; torch is imported later, by the first request that needs it. Every
request gets exactly one ``result`` or ``error``. One analysis or load runs at a time, and another one asked for
meanwhile is refused as ``busy``; the other commands are answered meanwhile. A line that is no request gets an ``error``
with its id as far as it has one; a line with the id of an unanswered request gets one with the id null. When standard
input closes, the process ends, whatever runs.

A cancelled request ends within a second with the error ``cancelled``, and nothing is written; ``cancelled`` is false
where nothing of that id runs, or where its result is just being put in place. With ``overwrite`` an earlier result in
the output folder is replaced, but no file that somebody changed since.

Refusals of the core keep their code. Besides: ``out-of-memory`` (of which device stands in the text; nothing goes on
with another device by itself),
``package-missing``, ``file-access``, ``disk-full``, and ``internal-error`` with a traceback on standard error.
"""
