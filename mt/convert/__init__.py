"""Export models to other engines and import models from them, one module per format, and verify
that a converted model gives the same translations.
"""
