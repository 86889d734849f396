"""Models of the users' own: any SpikingJelly network, its channel groups found and proved.

A plugin (a Python file of the user's, never uploaded code) registers a network::

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

``python -m psvit_core groups my_spikformer --plugin my_plugin.py`` then names its groups.
torch-pruning's DepGraph proposes them (``trace``), and the same oracle as for the zoo decides
(``check``): removed must equal silenced in float64, alone and together. What fails is left out and
named with the reason; ``check_groups`` lists both.

What is needed of a network: SpikingJelly neurons with v_reset 0 and a threshold above 0; a
BatchNorm behind every layer whose outputs are to be pruned; a forward that takes widths from its
layers or tensors (a width written into the code is found by the check, and its group refused);
a forward that also runs on torch's meta device, for shapes. Heads are taken from attributes such
as ``num_heads`` of the modules around a layer, and only where the freer form fails the check.

A layer that holds q, k and v at once is split into its parts (``...parts.0.weight``), and the
weight of a linear layer behind a flattened image is stored as (out, units, pixels); what comes out
stays the same, which the check looks at, too.

What is not counted: SOPs and MACs come from hooks on convolution and linear layers. Matrix
products and other sums that a network computes by itself (the attention of most transformers) are
in no number; ``GroupReport.uncounted`` names the layers that are not either. Firing rates are those
of the zoo's neurons and stay empty here. Layers that read other values than counts of spikes are
found by running made images, and count as MACs.

A model's identity is its weights and the files that define its layers and ``build``: after a change
there its plans have to be made anew. Other files that those import are not looked at. From the
command line and in the worker the result of the check is kept in the store under that identity;
a worker that runs already sees a changed plugin only when it is started anew.
"""

from psvit_core.custom.check import check_groups
from psvit_core.custom.model import CustomModel
from psvit_core.custom.plugin import load_plugin, register_model
from psvit_core.custom.structure import GroupReport

__all__ = ["CustomModel", "GroupReport", "check_groups", "load_plugin", "register_model"]
