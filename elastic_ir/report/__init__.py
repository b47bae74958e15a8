"""Networks as people see them: drawings, and the page of ``elastic-ir report``. Nothing here changes a graph."""
