"""`mt prepare`: train the tokenizer and fill the token cache, without training a model."""

from mt.cli.options import ConfigFile, Overrides


def prepare(
    config: ConfigFile,
    overrides: Overrides = None,
) -> None:
    """Prepare the training data: clean it, train the tokenizer, and encode the text.

    Prints the folder of the encoded text. `mt train` also prepares its data if necessary.
    """
    from mt.config import load_config

    loaded = load_config(config, overrides or ())
    from mt.cli.output import print_result
    from mt.data.prepare import prepare as run
    from mt.log import print_to_stderr
    from mt.runs.resolve import with_initial_model

    loaded, notes = with_initial_model(loaded)
    for note in notes:
        print_to_stderr(note)
    prepared = run(loaded)
    print_result(str(prepared.train.folder))
