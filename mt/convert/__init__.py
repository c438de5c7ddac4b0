"""Export models to other engines and import models from them, with one module per format.

`parity` verifies that a converted model gives the same translations.
"""
