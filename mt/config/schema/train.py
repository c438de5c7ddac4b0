"""Options of training: the optimizer, the loop, validation."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import Section, option


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = option(5e-4, "Peak learning rate (5e-4: fairseq's IWSLT14 recipe).", gt=0)
    betas: list[float] = option(
        [0.9, 0.98], "Adam's decay rates (Vaswani et al. 2017).", min_length=2, max_length=2
    )
    eps: float = option(1e-9, "Adam's epsilon (Vaswani et al. 2017).", gt=0)
    weight_decay: float = option(0.0, "Decoupled weight decay, on matrices only.", ge=0)
    schedule: Literal["inverse_sqrt", "constant"] = option(
        "inverse_sqrt", "After the warm-up: lr x sqrt(warmup_steps / step), or lr."
    )
    warmup_steps: int = option(
        4000, "Updates over which the learning rate rises linearly from 0 to `lr`.", ge=0
    )
    clip_norm: float = option(1.0, "Largest norm of all gradients together; 0 clips nothing.", ge=0)

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {self.betas} are not in [0, 1)")
        return self


class TrainConfig(Section):
    """The training loop: how long, how large an update, how often what."""

    init_from: str | None = option(
        None,
        "A model to begin with: its tokenizer, sizes and weights are taken over (fine-tuning).",
    )
    freeze: list[str] = option(
        [], "Parameters that stay as they are, by pattern, such as `encoder.*`."
    )
    max_steps: int | None = option(
        100_000, "Stop after this many updates.", ge=1, resume="may_change"
    )
    max_epochs: int | None = option(
        None, "Stop after this many passes over the data.", ge=1, resume="may_change"
    )
    patience: int | None = option(
        None,
        "Stop after this many validations without a better `metric`.",
        ge=1,
        resume="may_change",
    )
    metric: Literal["bleu", "chrf", "loss"] = option(
        "bleu", "What makes a checkpoint the best, and what patience watches.", resume="may_change"
    )
    label_smoothing: float = option(
        0.1,
        "Mass spread over the vocabulary (Szegedy et al. 2016; 0.1 in Vaswani et al. 2017).",
        ge=0,
        lt=1,
    )
    ema_decay: float = option(
        0.0,
        "Decay of the moving average of the weights, which validation, checkpoints and "
        "translation then use; 0 is off. The first updates use min(decay, (1 + step) / (10 + "
        "step)).",
        ge=0,
        lt=1,
    )
    grad_accum_steps: int = option(1, "Micro-batches an update, over all ranks.", ge=1)
    batch_tokens: int | None = option(
        None,
        "Maximum number of target tokens per update, over all ranks; sets the number of "
        "micro-batches by itself. A single sentence may have more.",
        ge=1,
    )
    gradient_checkpointing: bool = option(
        False,
        "Keep only the inputs of each layer and compute the rest again in the backward pass: less"
        " memory, a third more work.",
        resume="may_change",
    )
    compile: bool = option(
        True,
        "Compile the layers with torch.compile on a GPU. A CPU is faster without; it stays off "
        "there.",
        resume="may_change",
    )
    deterministic: bool = option(
        False, "Let a GPU give the same bits every time, which is slower.", resume="may_change"
    )
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp",
        "Of several processes each holds the whole model (ddp), or a share, for models too large "
        "for one GPU (fsdp).",
        resume="may_change",
    )
    timeout: float = option(
        300.0,
        "Seconds without an answer after which a rank counts as lost and the run ends.",
        gt=0,
        resume="may_change",
    )
    max_bad_updates: int = option(
        0,
        "Updates in all whose loss or gradients are not finite that are left out, each kept in "
        "crash/, before the run stops.",
        ge=0,
        resume="may_change",
    )
    divergence_factor: float | None = option(
        1.3,
        "Stop where the loss of `divergence_window` updates is on average this many times its "
        "best (counted as 1 or more); null: never.",
        gt=1,
        resume="may_change",
    )
    divergence_window: int = option(200, "See `divergence_factor`.", ge=1, resume="may_change")
    log_every: int = option(50, "Updates between log lines.", ge=1, resume="may_change")
    valid_every: int = option(1000, "Updates between validations.", ge=1, resume="may_change")
    save_every: int = option(
        1000, "Updates between checkpoints. A new best is saved at once.", ge=1, resume="may_change"
    )
    keep_last: int = option(2, "Newest checkpoints kept.", ge=1, resume="may_change")
    keep_best: int = option(1, "Best checkpoints kept besides.", ge=0, resume="may_change")

    @model_validator(mode="after")
    def _one_update_size(self) -> "TrainConfig":
        if self.batch_tokens is not None and self.grad_accum_steps != 1:
            raise ValueError(
                "`batch_tokens` derives the number of micro-batches; leave `grad_accum_steps` out"
            )
        if self.max_steps is None and self.max_epochs is None and self.patience is None:
            raise ValueError(
                "nothing would end this run: set `max_steps`, `max_epochs` or `patience`"
            )
        return self


class ValidConfig(Section):
    """Validation in training, by the same search and scorer as `mt translate` and `mt evaluate`."""

    max_sentences: int = option(
        500,
        "Sentences translated for BLEU and chrF, spread evenly over all corpora; the loss is over"
        " all.",
        ge=1,
    )
    beam_size: int = option(1, "Beam of these translations; 1 is greedy search.", ge=1)
    samples: int = option(3, "Translations shown in the log.", ge=0)
