"""The survival campaign, a promise a module: TITLE, cases(full), and run(case, folder), which says
what was not kept, or nothing.
"""
