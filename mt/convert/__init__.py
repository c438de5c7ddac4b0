"""Models out to other engines, and in from them: one module a format, and the proof that a
conversion translates alike.
"""
