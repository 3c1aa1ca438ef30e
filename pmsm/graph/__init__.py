"""The network as a graph: what an operator is, how a network is traced, how its graph is read and changed.

The only folder that imports torch.fx.
"""

from pmsm.graph.batch import keeps_batch_first
from pmsm.graph.decompose import additive_mask
from pmsm.graph.network import (
    Network,
    Node,
    add_module,
    apply,
    batches_of,
    call_of,
    channel_dim,
    dtype_of,
    finish,
    fold_batchnorm,
    free_name,
    input_count,
    inputs_of,
    insert_after,
    is_module,
    kind_of,
    module_of,
    modules,
    operator_name,
    remove,
    require,
    run,
    shape_of,
    signals,
)
from pmsm.graph.operators import (
    ACTIVATIONS,
    ADDITIONS,
    AVGPOOLS,
    BATCHNORMS,
    CONVOLUTIONS,
    DISCRETE_CALLS,
    FUNCTIONAL,
    MATRIX_PRODUCTS,
    MAXPOOLS,
    MEAN_CALLS,
    MOVES,
    MOVING_CALLS,
    PADDING_CALLS,
    RELU,
    SIZE_CALLS,
    WEIGHTED,
    WEIGHTED_CALLS,
    TrainingOnly,
)
from pmsm.graph.trace import record_shapes, stepwise, trace

__all__ = [
    "ACTIVATIONS", "ADDITIONS", "AVGPOOLS", "BATCHNORMS", "CONVOLUTIONS", "DISCRETE_CALLS", "FUNCTIONAL",
    "MATRIX_PRODUCTS", "MAXPOOLS", "MEAN_CALLS", "MOVES", "MOVING_CALLS", "Network", "Node",
    "PADDING_CALLS", "RELU", "SIZE_CALLS", "TrainingOnly", "WEIGHTED", "WEIGHTED_CALLS", "add_module",
    "additive_mask", "apply", "batches_of", "call_of", "channel_dim", "dtype_of", "finish",
    "fold_batchnorm", "free_name", "input_count", "inputs_of", "insert_after", "is_module",
    "keeps_batch_first", "kind_of", "module_of", "modules", "operator_name", "record_shapes", "remove",
    "require", "run", "shape_of", "signals", "stepwise", "trace",
]  # fmt: skip
