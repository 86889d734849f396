"""The parts of each page. A page's panels use ``ui.model`` and shared panels, no other page's."""
