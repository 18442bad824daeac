"""The one error a person is meant to read."""

from __future__ import annotations


class TinlabError(Exception):
    """Something a person can mend: bad input, a missing file, a full disk.

    The message is one sentence that names the file, field or value at fault and says how to mend it. The
    command line prints it without a traceback and exits with `exit_code`. Of several processes that train
    together, only the first prints one that is raised `on_every_rank`.
    """

    exit_code = 2
    on_every_rank = False
