"""The readers that are fuzzed, by name."""

from fuzzing.archives import mutated_archive
from fuzzing.checkpoints import checkpoint_seeds, examine_checkpoint, mutated_checkpoint
from fuzzing.command import command_seeds, examine_command, mutated_command
from fuzzing.idx import examine_idx, idx_seeds, mutated_idx
from fuzzing.model_files import examine_model, model_seeds
from fuzzing.target import Target

TARGETS = {
    "idx": Target(idx_seeds, examine_idx, mutated_idx),
    "model": Target(model_seeds, examine_model, mutated_archive),
    "checkpoint": Target(checkpoint_seeds, examine_checkpoint, mutated_checkpoint),
    "command": Target(command_seeds, examine_command, mutated_command),
}
