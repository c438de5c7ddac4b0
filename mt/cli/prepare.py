"""`mt prepare`: make the tokenizer and token cache of a configuration, without training."""

from mt.cli.options import ConfigFile, Overrides


def prepare(
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Do everything that comes before the first update of a training.

    Reads and checks the training text, trains the tokenizer and fills the token cache. `mt train`
    does this by itself if it has not been done.
    """
    from mt.config import load_config

    loaded = load_config(config, overrides or ())
    from mt.cli.output import tell
    from mt.data.prepare import prepare as run
    from mt.log import print_to_stderr
    from mt.runs.resolve import with_initial_model

    loaded, taken_over = with_initial_model(loaded)
    for line in taken_over:
        print_to_stderr(line)
    prepared = run(loaded)
    tell(str(prepared.train.folder))
