"""A process that keeps a model loaded and answers requests, one JSON object a line; what the Slicer panel talks to.

Requests on standard input, events on standard output, everything else on standard error::

    -> {"id": "7", "command": "analyze", "inputs": {"t1": "...", "t1ce": "...", "t2": "...", "flair": "..."},
        "output": "...", "model": "starter", "device": "auto", "precision": "auto", "study": "name", "overwrite": true}
    <- {"id": "7", "event": "progress", "stage": "prepare", "fraction": 0.25, "text": "..."}
    <- {"id": "7", "event": "result", "findings": ".../findings.json"}
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

The first line is ``{"event": "ready", ...}``. Every request gets exactly one ``result`` or ``error``. One analysis or
load runs at a time, and another one asked for meanwhile is refused as ``busy``; the other commands are answered at
once. The process ends when standard input closes, whatever runs.
"""
