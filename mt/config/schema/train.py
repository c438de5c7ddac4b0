"""Options of the optimizer, the training loop and validation."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import Section, option


class OptimConfig(Section):
    """The AdamW optimizer and its learning rate schedule."""

    lr: float = option(
        5e-4, "Peak learning rate (the default is from fairseq's IWSLT14 recipe).", gt=0
    )
    betas: list[float] = option(
        [0.9, 0.98],
        "Adam's decay rates for the moving averages of the gradient and the squared gradient "
        "(Vaswani et al. 2017).",
        min_length=2,
        max_length=2,
    )
    eps: float = option(
        1e-9,
        "Adam's epsilon, added to the denominator of each update (Vaswani et al. 2017).",
        gt=0,
    )
    weight_decay: float = option(
        0.0, "Decoupled weight decay, applied to matrices only. 0: no weight decay.", ge=0
    )
    schedule: Literal["inverse_sqrt", "constant"] = option(
        "inverse_sqrt",
        "Learning rate after the warm-up. `inverse_sqrt`: lr x sqrt(warmup_steps / step). "
        "`constant`: lr.",
    )
    warmup_steps: int = option(
        4000,
        "Number of updates over which the learning rate rises linearly from 0 to `lr`.",
        ge=0,
    )
    clip_norm: float = option(
        1.0,
        "Maximum norm of the gradient over all parameters; a larger gradient is scaled down to it. "
        "0: no clipping.",
        ge=0,
    )

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {list(self.betas)}: each must be at least 0 and below 1")
        return self


class TrainConfig(Section):
    """How long to train, how large an update is, and how often to log, validate and save."""

    init_from: str | None = option(
        None,
        "Model folder or run folder to fine-tune: training starts from its tokenizer, sizes and "
        "weights.",
    )
    freeze: list[str] = option(
        [], "Name patterns of parameters that are not trained, such as `encoder.*`."
    )
    max_steps: int | None = option(
        100_000, "Stop after this many updates. null: no maximum.", ge=1, resume="may_change"
    )
    max_epochs: int | None = option(
        None,
        "Stop after this many passes over the training data. null: no maximum.",
        ge=1,
        resume="may_change",
    )
    patience: int | None = option(
        None,
        "Stop after this many validations in a row without a better `metric`. null: never.",
        ge=1,
        resume="may_change",
    )
    metric: Literal["bleu", "chrf", "loss"] = option(
        "bleu",
        "Validation score that decides which checkpoint is best, and that `patience` watches.",
        resume="may_change",
    )
    label_smoothing: float = option(
        0.1,
        "Share of the target probability that is spread evenly over the vocabulary instead of "
        "given to the reference token (Szegedy et al. 2016; 0.1 in Vaswani et al. 2017).",
        ge=0,
        lt=1,
    )
    ema_decay: float = option(
        0.0,
        "Decay of a moving average of the weights, which is used to validate and translate, and "
        "saved in checkpoints. Early updates use min(decay, (1 + step) / (10 + step)). 0: no "
        "average.",
        ge=0,
        lt=1,
    )
    grad_accum_steps: int = option(1, "Number of micro-batches per update, over all ranks.", ge=1)
    batch_tokens: int | None = option(
        None,
        "Maximum number of target tokens per update, over all ranks; a single longer sentence is "
        "still used. Replaces `grad_accum_steps`, which would fix the number of micro-batches.",
        ge=1,
    )
    gradient_checkpointing: bool = option(
        False,
        "Whether to store only the inputs of each layer and recompute the rest in the backward "
        "pass. This needs less memory, but a third more computation.",
        resume="may_change",
    )
    compile: bool = option(
        True,
        "Whether to compile the layers with torch.compile on a GPU. On a CPU, compiled layers are "
        "slower, so they are never compiled.",
        resume="may_change",
    )
    deterministic: bool = option(
        False,
        "Whether a GPU must give bit-identical results every time. This is slower.",
        resume="may_change",
    )
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp",
        "How several processes hold the model. `ddp`: each has a full copy. `fsdp`: each has a "
        "shard, for models too large for one GPU.",
        resume="may_change",
    )
    timeout: float = option(
        300.0,
        "A rank that does not respond for this many seconds counts as lost, and the run ends.",
        gt=0,
        resume="may_change",
    )
    max_bad_updates: int = option(
        0,
        "How many updates of the whole run may be skipped because their loss or gradients are not "
        "finite; one more stops the run. The data of each is saved in crash/.",
        ge=0,
        resume="may_change",
    )
    divergence_factor: float | None = option(
        1.3,
        "Stop if the mean loss of `divergence_window` updates is more than this many times the "
        "lowest such mean so far, or more than this many nats per token if that mean is below 1. "
        "null: never.",
        gt=1,
        resume="may_change",
    )
    divergence_window: int = option(
        200,
        "Number of updates over which the loss is averaged for `divergence_factor`.",
        ge=1,
        resume="may_change",
    )
    log_every: int = option(50, "Number of updates between log lines.", ge=1, resume="may_change")
    valid_every: int = option(
        1000, "Number of updates between validations.", ge=1, resume="may_change"
    )
    save_every: int = option(
        1000,
        "Number of updates between checkpoints. A new best model is also saved at once.",
        ge=1,
        resume="may_change",
    )
    keep_last: int = option(
        2, "Number of most recent checkpoints to keep.", ge=1, resume="may_change"
    )
    keep_best: int = option(
        1,
        "Number of best checkpoints to keep in addition to the most recent ones.",
        ge=0,
        resume="may_change",
    )

    @model_validator(mode="after")
    def _one_update_size(self) -> "TrainConfig":
        if self.batch_tokens is not None and self.grad_accum_steps != 1:
            raise ValueError(
                "`batch_tokens` sets the number of micro-batches; remove `grad_accum_steps`"
            )
        if self.max_steps is None and self.max_epochs is None and self.patience is None:
            raise ValueError(
                "nothing would end this run: set `max_steps`, `max_epochs` or `patience`"
            )
        return self


class ValidConfig(Section):
    """Validation during training, with the same search and scorer as `mt translate` and
    `mt evaluate`.
    """

    max_sentences: int = option(
        500,
        "Maximum number of sentences to translate for BLEU and chrF, spread evenly over all "
        "corpora; the loss is computed on all sentences.",
        ge=1,
    )
    beam_size: int = option(1, "Beam size during validation; 1 is greedy search.", ge=1)
    samples: int = option(3, "Number of translations printed in the log per validation.", ge=0)
