"""How the processes of a run share its weights, where Lightning's own names do not say it."""

from pytorch_lightning.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """Data parallel over all processes of all nodes, with weights, gradients and optimizer state sharded (FSDP2).

    What is sharded is `aira.methods.base.Method.configure_model`; a checkpoint is one file, as without sharding.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Take all processes for the data."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
