"""The survival campaign: runs are disturbed on purpose, and must lose nothing.

Each module tests one promise. It has a `TITLE`, a function `cases(full)` that lists the names of
its cases, and a function `run(case, folder)` that returns how the promise was broken, or "".
"""
