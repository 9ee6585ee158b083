"""The datasets that convbench ships: plugins that find, fetch and verify them."""
