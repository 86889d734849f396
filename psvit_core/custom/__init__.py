"""Custom models: prune any SpikingJelly network, with channel groups found and verified.

A plugin (a Python file of the user, never uploaded code) registers a network::

    import psvit_core
    import torch
    from spikingjelly.activation_based.model.spikformer import spikformer_cifar10

    def build():
        net = spikformer_cifar10(T=4)
        net.load_state_dict(torch.load("my_weights.pth", weights_only=True))
        return net

    psvit_core.register_model(
        "my_spikformer", build, input_shape=(3, 32, 32), num_classes=10, data="folder:images"
    )

``python -m psvit_core groups my_spikformer --plugin my_plugin.py`` then lists its groups.
torch-pruning's DepGraph proposes them (``trace``). The zoo's own test decides (``check``):
removed must equal silenced in float64, for each group alone and for all together. Groups that fail
are rejected with a reason; ``check_groups`` lists both kinds.

Requirements on the network:

- SpikingJelly neurons with v_reset 0 and a threshold above 0.
- A BatchNorm after every layer whose outputs are to be pruned.
- A forward that takes widths from its layers or tensors. A hard-coded width makes the check fail,
  and its group is rejected.
- A forward that also runs on torch's meta device, which gives the shapes: tensors that it uses are
  parameters or buffers.
- A forward that keeps the type of its input, because groups are checked in float64.

Grouped convolutions that are not depthwise, layers that share a parameter, layers with computed
weights and layers before neurons not derived from BaseNode are refused by name. Errors of the
user's code become one ``ModelError``.

Numbers of heads are read from attributes such as ``num_heads`` of the modules around a layer. They
are used only if the group fails the check without heads.

A combined q, k, v layer is split into its parts (``...parts.0.weight``). The weight of a linear
layer after a flattened map is stored as (out, units, pixels). The check also verifies that neither
changes the output.

Not counted: SOPs and MACs are measured by hooks on convolution and linear layers. Matrix products
and other sums in the network's own code (the attention of most transformers) are in no number, nor
are the layers in ``GroupReport.uncounted``. Firing rates are only measured for the neurons of the
zoo. Layers that read values other than counts of spikes are found by running random images, and
count as MACs.

A model is identified by its weights and the files that define its layers and ``build``. After a
change to them, make its plans again. Files that those import are not taken into account. The
command line and the worker cache the result of the check in the store under that identity. A
running worker sees a changed plugin only after a restart.
"""

from psvit_core.custom.check import check_groups
from psvit_core.custom.model import CustomModel
from psvit_core.custom.plugin import load_plugin, register_model
from psvit_core.custom.structure import GroupReport

__all__ = ["CustomModel", "GroupReport", "check_groups", "load_plugin", "register_model"]
