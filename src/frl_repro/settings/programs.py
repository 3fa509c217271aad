"""Settings of each program outside every group: type, range, meaning. Imports nothing slow, as `schema`."""

from __future__ import annotations

from dataclasses import dataclass

from frl_repro.settings.keys import COUNT, SEED, key, own


@dataclass
class _MachineKeys:
    """Keys of every program that say how to compute, not what."""

    output_dir: str = key("", is_machine=True, is_path=True)
    device: str = key(
        "where to compute: auto, cpu, cuda or cuda:N; auto takes the GPU when there is one", is_machine=True
    )
    backend: str = key(
        "what does the arithmetic: torch, native (compiled on first use, for small networks on the CPU) or auto",
        one_of=("auto", "torch", "native"), is_machine=True,
    )  # fmt: skip
    num_threads: int | None = key("processor threads; null: PyTorch's own choice", "[1, 1024]", is_machine=True)


@dataclass
class RunKeys(_MachineKeys):
    """Keys of conf/config.yaml outside every group."""

    seed: int = key("drives initial weights, data order and random starts; not the validation split", SEED)
    init_from: str | None = key(
        "checkpoint that retraining (frl) starts from; null: the model of the same settings with frl=none", is_path=True
    )
    init_from_key: str | None = own(
        "which state_dict of that checkpoint to take if it has several, e.g. ema_state_dict; null: the usual one",
        added_as=None,
    )
    output_dir: str = key("folder that receives the run's own folder", is_machine=True, is_path=True)
    run_dir: str | None = key(
        "exact folder of this run; null: named after its settings inside output_dir", is_machine=True, is_path=True
    )
    base_dir: str | None = key(
        "folder that keeps the models which retraining starts from; null: bases inside output_dir",
        is_machine=True, is_path=True,
    )  # fmt: skip
    logger: str = key(
        "shows a run while it trains: none, or tensorboard (extra tensorboard; event files in the run's folder)",
        one_of=("none", "tensorboard"), is_machine=True,
    )  # fmt: skip
    compile: bool = key(
        "compile the network for training (torch.compile): the first steps wait for it, the others are faster",
        is_machine=True,
    )
    force: bool = key(
        "repeat a finished run instead of skipping it; begin anew what was begun on other data or weights",
        is_machine=True,
    )
    top: int = key(
        "where a table would have more than twice as many classes: show so many of the worst and of the best", COUNT,
        is_machine=True,
    )  # fmt: skip


@dataclass
class _CheckpointKeys(_MachineKeys):
    """Keys of programs that look at a finished model."""

    checkpoint: str = key(
        "the model: a run's folder, a file .safetensors, or torch.save(model.state_dict(), file)", is_path=True
    )
    checkpoint_key: str | None = own(
        "which state_dict of the file to take if it has several, e.g. ema_state_dict; null: the usual one",
        added_as=None,
    )
    seed: int | None = key("", SEED)


@dataclass
class EvaluateKeys(_CheckpointKeys):
    """Keys of conf/evaluate.yaml outside every group."""

    seed: int | None = key(
        "drives the attack's random starts; null: the seed of the run that wrote the checkpoint, else 0", SEED
    )
    # It adds a file and changes no number.
    num_examples: int = key(
        "images of the worst and of the best class to keep, clean and attacked, with predictions", "[0, 2^31)",
        is_machine=True,
    )  # fmt: skip
    output_dir: str = key("folder that receives the measurement's own folder", is_machine=True, is_path=True)
    top: int = key(
        "where a table would have more than twice as many classes: show so many of the worst and of the best",
        COUNT,
        is_machine=True,
    )


@dataclass
class SanityKeys(_CheckpointKeys):
    """Keys of conf/sanity.yaml outside every group."""

    seed: int | None = key(
        "drives images, random starts and noise; null: the seed of the run that wrote the checkpoint, else 0", SEED
    )
    other: str | None = key(
        "checkpoint of another model, say of another seed, for the transfer check; null: it is not run", is_path=True
    )
    num_images: int | None = key(
        "test images to check on, stratified by class, at most those there are; null: all", COUNT
    )
    epsilon: float = key("radius in pixel units of every check but the sweep over radii", "(0, 1)")
    # One check takes several times as many.
    num_steps: int = key(
        "gradient steps of the attack that is checked; more steps means five times as many", "[1, 2^28)"
    )
    output_dir: str = key("folder that receives the check's own folder", is_machine=True, is_path=True)
    run_dir: str | None = key(
        "exact folder of this check; null: named after the checkpoint's run inside output_dir",
        is_machine=True, is_path=True,
    )  # fmt: skip
